"""The OpenAI Agents SDK behind Writ."""

import asyncio
import os
import shlex
import sys
from pathlib import Path

from agents import Agent, Runner
from agents import handoff as hands_off
from agents.mcp import MCPServer, MCPServerStdio, MCPServerStreamableHttp


def server(**options) -> MCPServerStreamableHttp:
    """What the client of an MCP server is told; nothing else knows of Writ."""
    bearer = Path(os.environ["WRIT_BEARER_FILE"]).read_text().strip()
    headers = {"Authorization": f"Bearer {bearer}"}
    return MCPServerStreamableHttp({"url": os.environ["WRIT_URL"], "headers": headers}, name="orders", **options)


async def answer(orders: MCPServer, question: str) -> str:
    async with orders:
        planner = Agent("planner", instructions="You are planner.", mcp_servers=[orders])
        return (await Runner.run(planner, question, max_turns=20)).final_output


async def desk(question: str) -> str:
    return await answer(server(), question)


async def by_command(question: str) -> str:
    command, *arguments = shlex.split(os.environ["WRIT_COMMAND"])  # writ mcp --agent planner --user alice
    return await answer(MCPServerStdio({"command": command, "args": arguments}, name="orders"), question)


def present(call) -> dict | None:
    """A `tool_meta_resolver`: the agent that calls shows the capability it was handed, if it was handed one."""
    capability = call.run_context.context.get(call.run_context.agent.name)
    return {"dev.writ/capability": capability} if capability else None


async def handoff(question: str) -> str:
    async with server(tool_meta_resolver=present) as orders:

        async def delegate(run) -> None:
            wanted = {"agent": "researcher", "tools": ["lookup_order"]}
            given = await orders.call_tool("writ_delegate", wanted)
            run.context["researcher"] = given.structured_content["capability"]

        researcher = Agent("researcher", instructions="You are researcher.", mcp_servers=[orders])
        planner = Agent(
            "planner",
            instructions="You are planner.",
            mcp_servers=[orders],
            handoffs=[hands_off(researcher, on_handoff=delegate)],
        )
        return (await Runner.run(planner, question, context={}, max_turns=20)).final_output


if __name__ == "__main__":
    print(asyncio.run({"desk": desk, "by_command": by_command, "handoff": handoff}[sys.argv[1]](sys.argv[2])))
