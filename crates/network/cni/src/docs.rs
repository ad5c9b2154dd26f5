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
    /// What GC removes, and how it knows it; empty for nothing.
    pub gc: &'static str,
    /// When STATUS is not ready; empty for never.
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
    if !documentation.add.is_empty() {
        text.push_str("\n## Commands\n");
        let or = |said: &'static str, default| if said.is_empty() { default } else { said };
        for (command, said) in [
            ("ADD", documentation.add),
            ("CHECK", documentation.check),
            ("DEL", documentation.del),
            ("GC", or(documentation.gc, "Has nothing to remove.")),
            ("STATUS", or(documentation.status, "Always ready.")),
        ] {
            let _ = write!(text, "\n### {command}\n\n{}\n", sentence(said.trim()));
        }
    }
    if !documentation.example.is_empty() {
        let _ = write!(text, "\n## Example\n\n```json\n{}\n```\n", documentation.example.trim());
    }
    text
}

/// The list of all pages as Markdown: names and the first sentences of what they say of themselves.
pub fn index<'p>(plugins: impl Iterator<Item = (&'p str, Box<dyn DynPlugin + 'p>)>) -> String {
    let mut text = String::from(
        "# The plugins\n\nMade by `make generate` from the plugins' own definitions.\n\n| plugin | what it does |\n|---|---|\n",
    );
    for (name, plugin) in plugins {
        let summary = paragraphs(plugin.summary());
        let first = summary.split("\n\n").next().unwrap_or_default().trim().replace('\n', " ").replace('|', "\\|");
        let _ = writeln!(text, "| [{name}]({name}.md) | {first} |");
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

/// With a capital letter, for those who write what a command does as a list of verbs.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AddResult, Call, Error, Plugin, conf};

    conf! {
        /// A range.
        struct Range {
            /// First address.
            #[key = "rangeStart"]
            start: Option<std::net::IpAddr>,
        }
    }

    conf! {
        /// Hands out addresses.
        ///
        /// From ranges.
        struct PoolConf {
            /// Sets of ranges, `a|b`;
            /// one address of each.
            ranges: Vec<Vec<Range>>,
            /// Where it keeps them.
            data_dir: String = "/var/lib/x".to_owned(),
        }
    }

    struct Pool;

    impl Plugin for Pool {
        type Conf = PoolConf;
        const ABOUT: &'static str = "";
        const DOC: Documentation = Documentation {
            add: "takes addresses.",
            check: "Looks.",
            del: "Gives back.",
            status: "Not ready when full.",
            capabilities: &[("ips", "Wanted addresses.")],
            example: "{}",
            ..Documentation::EMPTY
        };

        fn add(&self, _: &Call<'_, PoolConf>) -> Result<AddResult, Error> {
            Ok(AddResult::default())
        }

        fn del(&self, _: &Call<'_, PoolConf>) -> Result<(), Error> {
            Ok(())
        }

        fn check(&self, _: &Call<'_, PoolConf>) -> Result<(), Error> {
            Ok(())
        }
    }

    #[test]
    fn a_page() {
        let expected = r#"# pool

Made by `make generate` from the plugin's own definition.

Hands out addresses.

From ranges.

Supports the CNI versions 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0.

## Keys

| key | type | default | meaning |
|---|---|---|---|
| `ranges` | list of list of object |  | Sets of ranges, `a\|b`; one address of each. |
| `ranges[][].rangeStart` | an IP address |  | First address. |
| `dataDir` | string | `"/var/lib/x"` | Where it keeps them. |

## Capabilities

| capability | meaning |
|---|---|
| `ips` | Wanted addresses. |

## Commands

### ADD

Takes addresses.

### CHECK

Looks.

### DEL

Gives back.

### GC

Has nothing to remove.

### STATUS

Not ready when full.

## Example

```json
{}
```
"#;
        assert_eq!(page("pool", &Pool), expected);
        let index = index([("pool", Box::new(Pool) as Box<dyn DynPlugin>)].into_iter());
        assert!(index.ends_with("\n| [pool](pool.md) | Hands out addresses. |\n"), "{index}");
    }
}
