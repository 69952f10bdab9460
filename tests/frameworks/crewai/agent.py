"""CrewAI behind Writ, over crewai-tools' MCP adapter."""

import asyncio
import os
import shlex
import sys
from pathlib import Path

from crewai import Agent, Crew, Task
from crewai_tools import MCPServerAdapter
from mcp import ClientSession, StdioServerParameters
from mcp.client.streamable_http import streamablehttp_client


def server(**headers: str) -> dict:
    """What the client of an MCP server is told; nothing else knows of Writ."""
    bearer = Path(os.environ["WRIT_BEARER_FILE"]).read_text().strip()
    headers = {"Authorization": f"Bearer {bearer}", **headers}
    return {"url": os.environ["WRIT_URL"], "transport": "streamable-http", "headers": headers}


def agent(role: str, tools: list) -> Agent:
    return Agent(role=role, goal="Answer.", backstory="Works at a desk.", tools=tools, llm="openai/gpt-4o-mini")


def answer(parameters: dict | StdioServerParameters, question: str) -> str:
    with MCPServerAdapter(parameters) as orders:
        planner = agent("planner", orders)
        task = Task(description=question, expected_output="An answer.", agent=planner)
        return Crew(agents=[planner], tasks=[task]).kickoff().raw


def desk(question: str) -> str:
    return answer(server(), question)


def by_command(question: str) -> str:
    command, *arguments = shlex.split(os.environ["WRIT_COMMAND"])  # writ mcp --agent planner --user alice
    return answer(StdioServerParameters(command=command, args=arguments), question)


async def delegate() -> str:
    async with streamablehttp_client(server()["url"], headers=server()["headers"]) as (read, write, _):
        async with ClientSession(read, write) as session:
            await session.initialize()
            wanted = {"agent": "researcher", "tools": ["lookup_order"]}
            return (await session.call_tool("writ_delegate", wanted)).structuredContent["capability"]


def handoff(question: str) -> str:
    # A connection of its own for each agent, since an adapter has the same headers for every call.
    lookups = server(**{"Writ-Capability": asyncio.run(delegate())})
    with MCPServerAdapter(server()) as orders, MCPServerAdapter(lookups) as looks:
        planner, researcher = agent("planner", orders), agent("researcher", looks)
        plan = Task(description=question, expected_output="What to look up.", agent=planner)
        look = Task(description="Look it up.", expected_output="An answer.", agent=researcher, context=[plan])
        return Crew(agents=[planner, researcher], tasks=[plan, look]).kickoff().raw


if __name__ == "__main__":
    print({"desk": desk, "by_command": by_command, "handoff": handoff}[sys.argv[1]](sys.argv[2]))
