//! Where MCP clients keep their configurations.

use std::path::{Path, PathBuf};

/// Somebody's folders.
#[derive(Clone, Debug)]
pub struct Folders {
    /// `$HOME`.
    pub home: PathBuf,
    /// `$XDG_CONFIG_HOME`, or `.config` at home.
    pub config: PathBuf,
    /// The folder one is in.
    pub here: PathBuf,
}

impl Folders {
    /// Of this process.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        let folder = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let home = folder("HOME")?;
        let config = folder("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        Some(Self { home, config, here: std::env::current_dir().ok()? })
    }
}

/// Every place where a configuration may be: of the person, of this folder, and of those above it.
#[must_use]
pub fn places(folders: &Folders) -> Vec<PathBuf> {
    let Folders { home, config, here } = folders;
    // Linux has these below `.config`, macOS below `Library/Application Support`.
    let mac = home.join("Library/Application Support");
    let mut places: Vec<PathBuf> = [
        ".claude.json",
        ".mcp.json",
        ".cursor/mcp.json",
        ".vscode/mcp.json",
        ".codeium/windsurf/mcp_config.json",
        ".config/zed/settings.json",
    ]
    .iter()
    .map(|path| home.join(path))
    .collect();
    for base in [config, &mac] {
        places.extend(
            [
                "Claude/claude_desktop_config.json",
                "Code/User/mcp.json",
                "Code/User/settings.json",
                "Code - Insiders/User/mcp.json",
                "Cursor/User/mcp.json",
                "zed/settings.json",
            ]
            .map(|path| base.join(path)),
        );
    }
    for folder in here.ancestors() {
        places.extend(
            [
                ".mcp.json",
                "mcp.json",
                ".cursor/mcp.json",
                ".vscode/mcp.json",
                ".vscode/settings.json",
                ".zed/settings.json",
            ]
            .map(|path| folder.join(path)),
        );
    }
    let mut seen: Vec<PathBuf> = Vec::new();
    for place in places {
        if !seen.iter().any(|known: &PathBuf| known.as_path() == Path::new(&place)) {
            seen.push(place);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_above_and_the_persons_own_are_looked_at_once() {
        let folders = Folders {
            home: PathBuf::from("/home/a"),
            config: PathBuf::from("/home/a/.config"),
            here: PathBuf::from("/home/a/src/app"),
        };
        let places = places(&folders);
        for place in [
            "/home/a/src/app/.mcp.json",
            "/home/a/src/.vscode/mcp.json",
            "/home/a/.cursor/mcp.json",
            "/home/a/.config/Claude/claude_desktop_config.json",
        ] {
            assert_eq!(places.iter().filter(|one| *one == Path::new(place)).count(), 1, "{place}");
        }
    }
}
