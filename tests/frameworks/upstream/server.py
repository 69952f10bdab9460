"""The MCP server that the agents of this folder use: an order desk, as anybody might write one. It knows no Writ.

    server.py <journal> [<port>]

What it really did goes into the journal, one line per call, so that a test can tell one refund from two. Over stdio
by default, over streamable HTTP with a port.
"""

import sys

from mcp.server.mcpserver import MCPServer
from mcp.types import ToolAnnotations

server = MCPServer("orders")
ORDERS = {"101": "analytical engine: shipped", "102": "punched cards: delayed until 1 December"}


def done(what: str) -> None:
    """Keeps a line of what happened."""
    with open(sys.argv[1], "a", encoding="utf-8") as journal:
        journal.write(what + "\n")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def lookup_order(order: str) -> str:
    """The state of one order."""
    done(f"lookup_order {order}")
    return ORDERS.get(order, "no such order")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def list_orders(customer: str) -> str:
    """The orders of a customer."""
    done(f"list_orders {customer}")
    return f"orders of {customer}: " + ", ".join(ORDERS)


@server.tool()
def export_customers(to: str) -> str:
    """Sends all customers with their addresses to somebody."""
    done(f"export_customers {to}")
    return f"sent to {to}"


@server.tool()
def refund_order(order: str, cents: int) -> str:
    """Pays an order back."""
    done(f"refund_order {order} {cents}")
    return f"refunded {cents} cents of order {order}"


@server.tool()
def print_label(order: str) -> str:
    """Prints the label of a parcel."""
    done(f"print_label {order}")
    raise RuntimeError("the label printer is out of paper")


if __name__ == "__main__":
    if sys.argv[2:]:
        server.run(transport="streamable-http", port=int(sys.argv[2]))
    else:
        server.run()
