"""AutoGen behind Writ, over autogen-ext's MCP workbench."""

import asyncio
import json
import os
import shlex
import sys
from pathlib import Path

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import TextMessageTermination
from autogen_agentchat.teams import Swarm
from autogen_ext.models.openai import OpenAIChatCompletionClient
from autogen_ext.tools.mcp import McpWorkbench, StdioServerParams, StreamableHttpServerParams


def workbench(**headers: str) -> McpWorkbench:
    """What the client of an MCP server is told; nothing else knows of Writ."""
    bearer = Path(os.environ["WRIT_BEARER_FILE"]).read_text().strip()
    headers = {"Authorization": f"Bearer {bearer}", **headers}
    return McpWorkbench(StreamableHttpServerParams(url=os.environ["WRIT_URL"], headers=headers))


def assistant(name: str, tools: McpWorkbench, **options) -> AssistantAgent:
    model = OpenAIChatCompletionClient(model="gpt-4o-mini")
    return AssistantAgent(
        name, model, workbench=tools, system_message=f"You are {name}.", max_tool_iterations=20, **options
    )


async def answer(orders: McpWorkbench, question: str) -> str:
    async with orders:
        return (await assistant("planner", orders).run(task=question)).messages[-1].content


async def desk(question: str) -> str:
    return await answer(workbench(), question)


async def by_command(question: str) -> str:
    command, *arguments = shlex.split(os.environ["WRIT_COMMAND"])  # writ mcp --agent planner --user alice
    return await answer(McpWorkbench(StdioServerParams(command=command, args=arguments)), question)


async def handoff(question: str) -> str:
    async with workbench() as orders:
        wanted = {"agent": "researcher", "tools": ["lookup_order"]}
        given = await orders.call_tool("writ_delegate", wanted)
        # A connection of its own for each agent, since a workbench has the same headers for every call.
        async with workbench(**{"Writ-Capability": json.loads(given.result[0].content)["capability"]}) as lookups:
            team = Swarm(
                [assistant("planner", orders, handoffs=["researcher"]), assistant("researcher", lookups)],
                termination_condition=TextMessageTermination("researcher"),
            )
            return (await team.run(task=question)).messages[-1].content


if __name__ == "__main__":
    print(asyncio.run({"desk": desk, "by_command": by_command, "handoff": handoff}[sys.argv[1]](sys.argv[2])))
