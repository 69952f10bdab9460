"""LangGraph and LangChain behind Writ, over langchain-mcp-adapters."""

import asyncio
import os
import shlex
import sys
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools


def connection() -> dict:
    """What the client of an MCP server is told; nothing else knows of Writ."""
    bearer = Path(os.environ["WRIT_BEARER_FILE"]).read_text().strip()
    headers = {"Authorization": f"Bearer {bearer}"}
    return {"orders": {"transport": "http", "url": os.environ["WRIT_URL"], "headers": headers}}


async def answer(tools: list, question: str) -> str:
    agent = create_agent("openai:gpt-4o-mini", tools, system_prompt="You are planner.")
    reply = await agent.ainvoke({"messages": [("user", question)]})
    return reply["messages"][-1].content


async def desk(question: str) -> str:
    return await answer(await MultiServerMCPClient(connection()).get_tools(), question)


async def by_command(question: str) -> str:
    command, *arguments = shlex.split(os.environ["WRIT_COMMAND"])  # writ mcp --agent planner --user alice
    client = MultiServerMCPClient({"orders": {"transport": "stdio", "command": command, "args": arguments}})
    # One session for the whole run: without one, the adapters start the command, and so a task, for every call.
    async with client.session("orders") as session:
        return await answer(await load_mcp_tools(session), question)


async def present(request, handler):
    """An interceptor: whatever runs with a capability in its context shows that one with each call."""
    capability = getattr(request.runtime, "context", None)
    if capability:
        request = request.override(headers={"Writ-Capability": capability})
    return await handler(request)


async def handoff(question: str) -> str:
    client = MultiServerMCPClient(connection(), tool_interceptors=[present])
    tools = await client.get_tools()
    researcher = create_agent("openai:gpt-4o-mini", tools, system_prompt="You are researcher.", context_schema=str)

    @tool
    async def ask_researcher(question: str) -> str:
        """Has the researcher look something up."""
        async with client.session("orders") as session:
            wanted = {"agent": "researcher", "tools": ["lookup_order"]}
            given = await session.call_tool("writ_delegate", wanted)
        reply = await researcher.ainvoke(
            {"messages": [("user", question)]}, context=given.structuredContent["capability"]
        )
        return reply["messages"][-1].content

    planner = create_agent("openai:gpt-4o-mini", [*tools, ask_researcher], system_prompt="You are planner.")
    reply = await planner.ainvoke({"messages": [("user", question)]})
    return reply["messages"][-1].content


if __name__ == "__main__":
    print(asyncio.run({"desk": desk, "by_command": by_command, "handoff": handoff}[sys.argv[1]](sys.argv[2])))
