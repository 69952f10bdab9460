//! One policy in three languages, and what it means in Rust.
//!
//! A user has an agent act on tools. Four rules stand for each tool: a junior pays less than a vice president, nobody
//! pays above a limit, nobody pays outside office hours, and only the clerk pays. Two stand for all: what the
//! agent has a right for is allowed, and nothing happens on weekends.

use std::fmt::Write as _;

pub struct Policy {
    pub tools: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub user: &'static str,
    pub agent: &'static str,
    pub tool: usize,
    pub action: &'static str,
    pub cents: i64,
    pub hour: u64,
    /// 1 is Monday.
    pub weekday: u64,
    pub has_right: bool,
}

pub const AGENTS: [&str; 2] = ["clerk", "analyst"];
const USERS: [&str; 2] = ["junior", "vp"];

/// The most a junior pays with a tool, in cents. The vice president may pay ten times as much.
fn limit(tool: usize) -> i64 {
    100_000 + 1_000 * i64::try_from(tool).unwrap()
}

impl Question {
    /// What every engine has to answer.
    pub fn is_allowed(&self) -> bool {
        let pays = self.action == "wire";
        self.has_right
            && self.weekday <= 5
            && !(self.user == "junior" && pays && self.cents > limit(self.tool))
            && !(pays && self.cents > 10 * limit(self.tool))
            && !(pays && (self.hour < 8 || self.hour >= 18))
            && !(self.agent != "clerk" && pays)
    }
}

impl Policy {
    pub fn rules(&self) -> usize {
        4 * self.tools + 2
    }

    /// First, last and one in the middle of the tools, in every combination.
    pub fn questions(&self) -> Vec<Question> {
        let mut all = Vec::new();
        for tool in [0, self.tools / 2, self.tools - 1] {
            for user in USERS {
                for agent in AGENTS {
                    for (cents, hour, weekday) in
                        [(5_000, 10, 2), (limit(tool) + 1, 10, 2), (10 * limit(tool) + 1, 10, 2), (5_000, 7, 2), (5_000, 10, 6)]
                    {
                        for action in ["wire", "read"] {
                            all.push(Question { user, agent, tool, action, cents, hour, weekday, has_right: true });
                        }
                    }
                }
            }
            all.push(Question {
                user: "vp",
                agent: "clerk",
                tool,
                action: "wire",
                cents: 1,
                hour: 10,
                weekday: 2,
                has_right: false,
            });
        }
        all
    }

    pub fn datalog(&self) -> String {
        let mut text = "allow if request(\"call\"), right($r, $a), resource($r), action($a);\n\
                        deny if request(\"call\"), weekday($day), $day > 5;\n\
                        may_delegate($from, $to) <- delegates($from, $to);\n"
            .to_owned();
        for tool in 0..self.tools {
            let on = format!("resource(\"tool.t{tool}\"), action(\"wire\")");
            let limit = limit(tool);
            writeln!(
                text,
                "deny if {on}, user($issuer, \"junior\"), arg(\"/amount\", $cents), $cents > {limit};\n\
                 deny if {on}, arg(\"/amount\", $cents), $cents > {};\n\
                 deny if {on}, hour($hour), $hour < 8 || $hour >= 18;\n\
                 deny if {on}, caller($agent), $agent !== \"clerk\";",
                10 * limit
            )
            .unwrap();
        }
        text
    }

    pub fn cedar(&self) -> String {
        let mut text = "permit(principal, action, resource) when { context.rights.contains(context.right) };\n\
                        forbid(principal, action, resource) when { context.weekday > 5 };\n"
            .to_owned();
        for tool in 0..self.tools {
            let on = format!("forbid(principal, action == Action::\"wire\", resource == Tool::\"t{tool}\")");
            let limit = limit(tool);
            writeln!(
                text,
                "{on} when {{ context.user == \"junior\" && context.cents > {limit} }};\n\
                 {on} when {{ context.cents > {} }};\n\
                 {on} when {{ context.hour < 8 || context.hour >= 18 }};\n\
                 {on} when {{ principal != Agent::\"clerk\" }};",
                10 * limit
            )
            .unwrap();
        }
        text
    }

    pub fn rego(&self) -> String {
        let mut text = "package writ\nimport rego.v1\ndefault allow := false\n\
                        allow if { input.right in input.rights; not deny }\n\
                        deny if { input.weekday > 5 }\n"
            .to_owned();
        for tool in 0..self.tools {
            let on = format!("input.resource == \"tool.t{tool}\"; input.action == \"wire\"");
            let limit = limit(tool);
            writeln!(
                text,
                "deny if {{ {on}; input.user == \"junior\"; input.cents > {limit} }}\n\
                 deny if {{ {on}; input.cents > {} }}\n\
                 deny if {{ {on}; input.hour < 8 }}\n\
                 deny if {{ {on}; input.hour >= 18 }}\n\
                 deny if {{ {on}; input.agent != \"clerk\" }}",
                10 * limit
            )
            .unwrap();
        }
        text
    }
}
