//! Configurations of MCP clients: which programs there are, where they keep them, what stands in them, and how an entry
//! is rewritten so that nothing else in the file changes.
//!
//! No file is opened here: texts come in, and texts go out.

mod document;
mod entry;
mod places;

use std::path::Path;

pub use document::{ClientConfig, Entry, Unreadable};
pub use entry::{Connection, Surroundings};
pub use places::{Folders, places};

/// A program that speaks to MCP servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// Claude Code: `.mcp.json` of a project, `~/.claude.json`.
    ClaudeCode,
    /// Claude Desktop.
    ClaudeDesktop,
    /// Cursor.
    Cursor,
    /// Visual Studio Code.
    VsCode,
    /// Windsurf.
    Windsurf,
    /// Zed.
    Zed,
    /// Some other program that reads `{"mcpServers": {…}}`.
    Other,
}

impl Client {
    /// By the name of a file and the folder it is in.
    #[must_use]
    pub fn of(file: &Path) -> Self {
        let name = |path: Option<&Path>| {
            path.and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default().to_owned()
        };
        let folder = name(file.parent());
        match (folder.as_str(), name(Some(file)).as_str()) {
            (_, ".mcp.json" | ".claude.json") => Self::ClaudeCode,
            (_, "claude_desktop_config.json") => Self::ClaudeDesktop,
            (".cursor", _) => Self::Cursor,
            (".vscode" | "User", "mcp.json" | "settings.json") => Self::VsCode,
            ("windsurf", _) | (_, "mcp_config.json") => Self::Windsurf,
            ("zed" | ".zed" | "Zed", "settings.json") => Self::Zed,
            _ => Self::Other,
        }
    }

    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ClaudeCode => "Claude Code",
            Self::ClaudeDesktop => "Claude Desktop",
            Self::Cursor => "Cursor",
            Self::VsCode => "VS Code",
            Self::Windsurf => "Windsurf",
            Self::Zed => "Zed",
            Self::Other => "MCP client",
        }
    }

    /// What the agent is called that stands for it, unless somebody says otherwise.
    #[must_use]
    pub fn agent(self) -> &'static str {
        match self {
            Self::ClaudeCode | Self::ClaudeDesktop => "claude",
            Self::Cursor => "cursor",
            Self::VsCode => "vscode",
            Self::Windsurf => "windsurf",
            Self::Zed => "zed",
            Self::Other => "app",
        }
    }

    /// Whether its files may have comments and trailing commas.
    fn takes_comments(self) -> bool {
        matches!(self, Self::Cursor | Self::VsCode | Self::Windsurf | Self::Zed)
    }

    /// Where the objects are that have an entry for each server, as paths of keys; `*` is any key.
    fn server_maps(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::ClaudeCode => &[&["mcpServers"], &["projects", "*", "mcpServers"]],
            Self::ClaudeDesktop | Self::Cursor | Self::Windsurf => &[&["mcpServers"]],
            Self::VsCode => &[&["servers"], &["mcp", "servers"], &["mcpServers"]],
            Self::Zed => &[&["context_servers"]],
            Self::Other => &[&["mcpServers"], &["servers"]],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_their_files() {
        for (file, client) in [
            ("/srv/app/.mcp.json", Client::ClaudeCode),
            ("/home/a/.claude.json", Client::ClaudeCode),
            ("/home/a/.config/Claude/claude_desktop_config.json", Client::ClaudeDesktop),
            ("/srv/app/.cursor/mcp.json", Client::Cursor),
            ("/srv/app/.vscode/mcp.json", Client::VsCode),
            ("/home/a/.config/Code/User/mcp.json", Client::VsCode),
            ("/home/a/.config/Code/User/settings.json", Client::VsCode),
            ("/home/a/.codeium/windsurf/mcp_config.json", Client::Windsurf),
            ("/home/a/.config/zed/settings.json", Client::Zed),
            ("/srv/app/servers.json", Client::Other),
        ] {
            assert_eq!(Client::of(Path::new(file)), client, "{file}");
        }
    }
}
