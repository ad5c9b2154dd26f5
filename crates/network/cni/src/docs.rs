//! The page of a plugin, made from what it says of itself.

use std::fmt::Write as _;

use crate::version::list;
use crate::{DynPlugin, Key};

/// What a plugin's page says besides its keys: one paragraph of Markdown for each command.
#[derive(Debug, Clone, Copy)]
pub struct Documentation {
    /// What ADD does, in order.
    pub add: &'static str,
    /// What DEL does, and what it copes with.
    pub del: &'static str,
    /// What CHECK compares.
    pub check: &'static str,
    /// What GC removes, and how it knows it.
    pub gc: &'static str,
    /// When STATUS is not ready.
    pub status: &'static str,
    /// Capabilities (keys of `runtimeConfig`) and what they do.
    pub capabilities: &'static [(&'static str, &'static str)],
    /// Keys of `CNI_ARGS` and what they do.
    pub args: &'static [(&'static str, &'static str)],
    /// A network configuration list that uses the plugin, as JSON.
    pub example: &'static str,
}

impl Documentation {
    /// Nothing said.
    pub const EMPTY: Self =
        Self { add: "", del: "", check: "", gc: "", status: "", capabilities: &[], args: &[], example: "" };
}

/// The page of a plugin as Markdown.
pub fn page(name: &str, plugin: &dyn DynPlugin) -> String {
    let documentation = plugin.documentation();
    let mut text = format!("# {name}\n\nMade by `make generate` from the plugin's own definition.\n\n");
    text.push_str(&paragraphs(plugin.summary()));
    let _ = write!(text, "\nSupports the CNI versions {}.\n", list(plugin.versions()));
    if !plugin.keys().is_empty() {
        text.push_str("\n## Keys\n\n| key | type | default | meaning |\n|---|---|---|---|\n");
        rows("", plugin.keys(), &mut text);
    }
    pairs("Capabilities", "capability", documentation.capabilities, &mut text);
    pairs("CNI_ARGS", "key", documentation.args, &mut text);
    let commands = [
        ("ADD", documentation.add),
        ("CHECK", documentation.check),
        ("DEL", documentation.del),
        ("GC", documentation.gc),
        ("STATUS", documentation.status),
    ];
    if commands.iter().any(|(_, said)| !said.is_empty()) {
        text.push_str("\n## Commands\n");
    }
    for (command, said) in commands.into_iter().filter(|(_, said)| !said.is_empty()) {
        let _ = write!(text, "\n**{command}** {}\n", said.trim());
    }
    if !documentation.example.is_empty() {
        let _ = write!(text, "\n## Example\n\n```json\n{}\n```\n", documentation.example.trim());
    }
    text
}

/// One row for each key, and for each key of the objects that it takes.
fn rows(prefix: &str, keys: &[Key], text: &mut String) {
    for key in keys {
        let kind = (key.kind)();
        let default = (key.default)();
        let default = if default.is_empty() { default } else { format!("`{default}`") };
        let name = format!("{prefix}{}", key.name);
        let doc = paragraphs(key.doc).trim().replace('\n', " ").replace('|', "\\|");
        let _ = writeln!(text, "| `{name}` | {kind} | {default} | {doc} |");
        let nested = (key.nested)();
        // Configurations do not contain themselves; the depth is bounded all the same.
        if !nested.is_empty() && prefix.len() < 200 {
            let lists = kind.matches("list of").count();
            let each = if kind.starts_with("object of") { ".*" } else { "" };
            rows(&format!("{name}{each}{}.", "[]".repeat(lists)), nested, text);
        }
    }
}

fn pairs(title: &str, what: &str, pairs: &[(&str, &str)], text: &mut String) {
    if pairs.is_empty() {
        return;
    }
    let _ = write!(text, "\n## {title}\n\n| {what} | meaning |\n|---|---|\n");
    for (key, meaning) in pairs {
        let _ = writeln!(text, "| `{key}` | {} |", meaning.trim().replace('\n', " ").replace('|', "\\|"));
    }
}

/// Documentation comments start every line with a space.
fn paragraphs(doc: &str) -> String {
    let mut text = String::new();
    for line in doc.lines() {
        text.push_str(line.strip_prefix(' ').unwrap_or(line).trim_end());
        text.push('\n');
    }
    text
}
