//! Reads the source text of `k8s-openapi`: schemas, kinds, and the merging of lists.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde_json::{Map, Value};

/// A kind and where it is served.
#[expect(clippy::struct_field_names, reason = "the field's own terms")]
pub(super) struct Kind {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    pub(super) plural: String,
    /// `N`amespaced, `C`luster or `-` for a subresource's body.
    pub(super) scope: char,
    pub(super) list_kind: String,
    pub(super) definition: String,
}

/// Everything read.
#[derive(Default)]
pub(super) struct Schemas {
    /// Definition name to JSON schema; references are `{"$ref": "path::Type"}` until [`Schemas::definition_of`] names them.
    pub(super) definitions: BTreeMap<String, Value>,
    pub(super) kinds: Vec<Kind>,
    /// Definition name to (JSON-insensitive field name, key field names; empty for a set).
    pub(super) merges: BTreeMap<String, Vec<(String, Vec<String>)>>,
    by_path: BTreeMap<String, String>,
}

impl Schemas {
    /// The definition name of a Rust path such as `api::core::v1::Pod`.
    pub(super) fn definition_of(&self, path: &str) -> Option<&str> {
        self.by_path.get(path).map(String::as_str)
    }

    pub(super) fn read_directory(&mut self, root: &Path, module: &str) -> Result<()> {
        let mut files: Vec<_> = fs_err::read_dir(root.join(module))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        files.sort();
        for file in files {
            if file.extension().is_some_and(|extension| extension == "rs")
                && file.file_name().is_some_and(|name| name != "mod.rs")
            {
                let text = fs_err::read_to_string(&file)?;
                self.read(&text, module).with_context(|| format!("{}", file.display()))?;
            }
        }
        Ok(())
    }

    fn read(&mut self, text: &str, module: &str) -> Result<()> {
        let Some(start) = text.find("impl crate::schemars::JsonSchema for ") else { return Ok(()) };
        let block = &text[start..];
        let rust_name = between(block, "JsonSchema for ", " {").context("no type name")?;
        // Generic lists have no schema of their own.
        if rust_name.contains('<') || block.starts_with("impl<") {
            return Ok(());
        }
        let name = between(&block[block.find("fn schema_name").context("no schema name")?..], "\"", "\"")
            .context("no schema name")?
            .to_owned();
        let literal = block.split_once("json_schema!(").context("no schema literal")?.1;
        let mut parser = Parser { text: literal, at: 0 };
        let schema = parser.value()?;
        self.by_path.insert(format!("{}::{rust_name}", module.replace('/', "::")), name.clone());
        self.definitions.insert(name.clone(), schema);
        self.read_kind(text, &name)?;
        self.read_merges(text, &name);
        Ok(())
    }

    fn read_kind(&mut self, text: &str, definition: &str) -> Result<()> {
        let Some((_, resource)) = text.split_once("impl crate::Resource for ") else { return Ok(()) };
        let constant = |name: &str| {
            let start = resource.find(&format!("const {name}: ")).with_context(|| format!("no {name}"))?;
            between(&resource[start..], "\"", "\"").map(str::to_owned).with_context(|| format!("no {name}"))
        };
        let scope = match between(resource, "type Scope = crate::", ";").context("no scope")? {
            "NamespaceResourceScope" => 'N',
            "ClusterResourceScope" => 'C',
            "SubResourceScope" => '-',
            other => bail!("unknown scope {other}"),
        };
        let list_kind = between(text, "const LIST_KIND: &'static str = \"", "\"").unwrap_or_default().to_owned();
        self.kinds.push(Kind {
            group: constant("GROUP")?,
            version: constant("VERSION")?,
            kind: constant("KIND")?,
            plural: constant("URL_PATH_SEGMENT")?,
            scope,
            list_kind,
            definition: definition.to_owned(),
        });
        Ok(())
    }

    fn read_merges(&mut self, text: &str, definition: &str) {
        for found in MERGE.captures_iter(text) {
            let keys = KEY.captures_iter(&found[3]).map(|key| key[1].trim_end_matches('_').to_owned()).collect();
            self.merges
                .entry(definition.to_owned())
                .or_default()
                .push((found[2].trim_end_matches('_').to_owned(), keys));
        }
    }
}

/// A list that is merged, its field and what it is compared by; compiled once for some nine hundred files.
static MERGE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"merge_strategies::list::(map|set)\(\s*&mut self\.(\w+),([^;]*);").expect("a valid pattern")
});
/// A field in a comparison.
static KEY: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"lhs\.(\w+) == rhs").expect("a valid pattern"));

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(found, _)| found)
}

/// A parser of the literals inside `json_schema!`: JSON with trailing commas, parentheses, and two forms of reference.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start();
        self.at += rest.len() - trimmed.len();
        trimmed
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        ensure!(self.eat(token), "expected {token:?} at {:?}", self.rest().chars().take(60).collect::<String>());
        Ok(())
    }

    fn value(&mut self) -> Result<Value> {
        if self.eat("(") {
            let value = self.value()?;
            self.expect(")")?;
            return Ok(value);
        }
        if self.rest().starts_with("__gen.") {
            return self.reference();
        }
        if self.rest().starts_with('"') {
            return Ok(Value::String(self.string()?));
        }
        if self.eat("true") {
            return Ok(Value::Bool(true));
        }
        if self.eat("false") {
            return Ok(Value::Bool(false));
        }
        if self.eat("[") {
            let mut items = Vec::new();
            while !self.eat("]") {
                items.push(self.value()?);
                self.eat(",");
            }
            return Ok(Value::Array(items));
        }
        self.expect("{")?;
        if self.eat("let mut schema_obj = ") {
            let mut value = self.reference()?;
            self.expect(";")?;
            while self.eat("schema_obj.ensure_object().insert(") {
                let key = self.string()?;
                self.expect(".into(),")?;
                value[key] = Value::String(self.string()?);
                self.expect(".into());")?;
            }
            self.expect("schema_obj")?;
            self.expect("}")?;
            return Ok(value);
        }
        let mut object = Map::new();
        while !self.eat("}") {
            let key = self.string()?;
            self.expect(":")?;
            object.insert(key, self.value()?);
            self.eat(",");
        }
        Ok(Value::Object(object))
    }

    fn reference(&mut self) -> Result<Value> {
        self.expect("__gen.subschema_for::<crate::")?;
        let (path, _) = self.rest().split_once('>').context("an unfinished reference")?;
        self.at += path.len();
        self.expect(">()")?;
        Ok(serde_json::json!({ "$ref": path }))
    }

    /// A Rust string literal.
    fn string(&mut self) -> Result<String> {
        self.expect("\"")?;
        let mut out = String::new();
        let mut chars = self.text[self.at..].char_indices();
        while let Some((offset, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += offset + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some('0') => out.push('\0'),
                    Some(c @ ('"' | '\\' | '\'')) => out.push(c),
                    Some('u') => {
                        let code: String = chars.by_ref().map(|(_, c)| c).skip(1).take_while(|c| *c != '}').collect();
                        let code = u32::from_str_radix(&code, 16)?;
                        out.push(char::from_u32(code).context("not a character")?);
                    }
                    other => bail!("unknown escape {other:?}"),
                },
                c => out.push(c),
            }
        }
        bail!("an unfinished string")
    }
}
