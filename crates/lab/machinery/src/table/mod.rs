//! Server-side printing: `meta.k8s.io/v1 Table`.
//!
//! A [`Definition`] says which columns a kind has and computes the cells of an object. Built-in kinds have theirs from
//! [`builtin`], custom resources make one of their `additionalPrinterColumns` with [`Definition::custom`].
//! [`to_table`] puts rows and columns together.

mod cells;
mod jsonpath;
mod kinds;
mod pods;
mod rows;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub use jsonpath::{JsonPath, JsonPathError};

use crate::duration;

/// One column of a table (`TableColumnDefinition`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The heading; clients print it in capitals.
    pub name: String,
    /// The type of the cells: `string`, `integer`, `number`, `boolean` or `date`.
    pub ty: String,
    /// An OpenAPI format; `name` marks the column that identifies the row.
    pub format: String,
    /// What the column shows, for people.
    pub description: String,
    /// 0 is always shown, anything above only in wide output.
    pub priority: i64,
}

impl Column {
    /// The column as it is sent.
    pub fn to_value(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.ty,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        })
    }
}

/// The columns of one kind and how to fill them.
#[derive(Debug, Clone)]
pub struct Definition {
    columns: Vec<Column>,
    cells: Cells,
}

#[derive(Debug, Clone)]
enum Cells {
    Builtin(fn(&Value, Timestamp) -> Vec<Value>),
    Custom(Vec<(JsonPath, String)>),
}

/// How the columns of a built-in kind are written down: name, type, priority and description.
type ColumnRow = (&'static str, &'static str, u8, &'static str);

/// The printer of one built-in kind.
struct KindPrinter {
    group: &'static str,
    kind: &'static str,
    columns: &'static [ColumnRow],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

/// The table of a built-in kind; kinds without columns of their own show Name and Created At.
pub fn builtin(group: &str, kind: &str) -> Definition {
    let printer = find(group, kind).unwrap_or(&kinds::FALLBACK);
    let columns = printer.columns.iter().map(|&(name, ty, priority, description)| Column {
        name: name.to_owned(),
        ty: ty.to_owned(),
        format: if name == "Name" || name == "Attacher" { "name".to_owned() } else { String::new() },
        description: description.to_owned(),
        priority: i64::from(priority),
    });
    Definition { columns: columns.collect(), cells: Cells::Builtin(printer.cells) }
}

/// Whether a built-in kind has columns of its own.
pub fn has_builtin(group: &str, kind: &str) -> bool {
    find(group, kind).is_some()
}

fn find(group: &str, kind: &str) -> Option<&'static KindPrinter> {
    kinds::PRINTERS.iter().chain(kinds::NAMELESS).find(|p| p.group == group && p.kind == kind)
}

impl Definition {
    /// The table of a custom resource: Name, then its `additionalPrinterColumns`; an absent or empty list means Age.
    ///
    /// # Errors
    /// The first `jsonPath` that cannot be parsed.
    pub fn custom(additional_printer_columns: Option<&Value>) -> Result<Self, JsonPathError> {
        let declared = additional_printer_columns.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut columns = vec![Column {
            name: "Name".to_owned(),
            ty: "string".to_owned(),
            format: "name".to_owned(),
            description: kinds::NAME.to_owned(),
            priority: 0,
        }];
        let mut paths = Vec::with_capacity(declared.len().max(1));
        for column in declared {
            let text = |field: &str| column[field].as_str().unwrap_or_default().to_owned();
            paths.push((JsonPath::parse(&text("jsonPath"))?, text("type")));
            columns.push(Column {
                name: text("name"),
                ty: text("type"),
                format: text("format"),
                description: text("description"),
                priority: column["priority"].as_i64().unwrap_or_default(),
            });
        }
        if declared.is_empty() {
            paths.push((JsonPath::parse(".metadata.creationTimestamp")?, "date".to_owned()));
            columns.push(Column {
                name: "Age".to_owned(),
                ty: "date".to_owned(),
                format: String::new(),
                description: kinds::CREATED.to_owned(),
                priority: 0,
            });
        }
        Ok(Self { columns, cells: Cells::Custom(paths) })
    }

    /// The columns, in order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The cells of one object, one for each column; ages are taken at `now`.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match &self.cells {
            Cells::Builtin(cells) => cells(object, now),
            Cells::Custom(paths) => std::iter::once(cells::name(object))
                .chain(paths.iter().map(|(path, ty)| custom_cell(&path.find(object), ty, now)))
                .collect(),
        }
    }
}

/// What a custom column shows of the values found: the first one, in the column's type; null when it is of another.
fn custom_cell(found: &[&Value], ty: &str, now: Timestamp) -> Value {
    let Some(&first) = found.first() else {
        return Value::Null;
    };
    match (ty, first) {
        (_, Value::Null) => Value::Null,
        ("date", Value::String(stamp)) => Value::String(duration::age(Some(stamp), now)),
        ("integer", Value::Number(n)) => {
            // Whole numbers may arrive as 3.0; the cast cannot lose more than the API's own int64 does.
            #[expect(clippy::cast_possible_truncation, reason = "saturating by definition of `as`, as wanted")]
            let whole = n.as_i64().or_else(|| n.as_f64().map(|f| f as i64));
            whole.map_or(Value::Null, Value::from)
        }
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => first.clone(),
        ("string", _) => Value::String(plain(first)),
        _ => Value::Null,
    }
}

/// A value as text: strings bare, everything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// How much of an object its row carries (query parameter `includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// `PartialObjectMetadata`: what `-A`, `--show-labels` and `-L` need.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// Reads the query parameter; `None` when it is none of `None`, `Metadata`, `Object` or empty.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// What surrounds the rows of a table.
#[derive(Debug, Clone)]
pub struct TableOptions<'a> {
    /// `v1`, or `v1beta1` for old clients.
    pub version: &'a str,
    /// What each row carries.
    pub include: IncludeObject,
    /// False in every event of a watch but the first.
    pub definitions: bool,
    /// The instant at which ages are taken.
    pub now: Timestamp,
}

/// Assembles a Table. `list_metadata` is the list's `metadata` (resourceVersion, continue, remainingItemCount); for a
/// single object or a watch event pass `{"resourceVersion": …}`, for a bookmark no items.
pub fn to_table<'a>(
    definition: &Definition,
    items: impl IntoIterator<Item = &'a Value>,
    list_metadata: &Value,
    options: &TableOptions<'_>,
) -> Value {
    let rows: Vec<Value> = items
        .into_iter()
        .map(|item| {
            let mut row = Map::new();
            row.insert("cells".to_owned(), Value::Array(definition.cells(item, options.now)));
            if let Some(conditions) = pods::row_conditions(item) {
                row.insert("conditions".to_owned(), conditions);
            }
            let object = match options.include {
                IncludeObject::None => Value::Null,
                IncludeObject::Metadata => partial_metadata(item, options.version),
                IncludeObject::Object => item.clone(),
            };
            row.insert("object".to_owned(), object);
            Value::Object(row)
        })
        .collect();
    let columns: Vec<Value> =
        if options.definitions { definition.columns.iter().map(Column::to_value).collect() } else { Vec::new() };
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{}", options.version),
        "metadata": if list_metadata.is_object() { list_metadata.clone() } else { json!({}) },
        "columnDefinitions": if options.definitions { Value::Array(columns) } else { Value::Null },
        "rows": rows,
    })
}

/// The `PartialObjectMetadata` of an object: its metadata and nothing else. `version` is that of `meta.k8s.io`.
pub fn partial_metadata(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object["metadata"],
    })
}

/// The Table of a `Status`: what `kubectl get` prints of an error.
pub fn of_status(status: &Value, options: &TableOptions<'_>) -> Value {
    to_table(
        &builtin("", "Status"),
        [status],
        &json!({}),
        &TableOptions { include: IncludeObject::None, ..options.clone() },
    )
}

#[cfg(test)]
mod tests;
