//! The schema of one value, and the table of named schemas.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

/// The JSON type that a schema demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Type {
    /// No demand: any JSON value.
    #[default]
    Any,
    /// A JSON object: properties, or a map when [`Schema::additional`] is set.
    Object,
    /// A JSON array of [`Schema::items`].
    Array,
    /// A JSON string.
    String,
    /// A JSON number without fraction.
    Integer,
    /// Any JSON number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A number without fraction, or a string (`x-kubernetes-int-or-string`); Quantity and IntOrString are this.
    IntOrString,
}

impl Type {
    /// The name in OpenAPI's `type`; empty for [`Type::Any`] and [`Type::IntOrString`], which OpenAPI expresses otherwise.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any | Self::IntOrString => "",
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// How server-side apply merges a list (`x-kubernetes-list-type`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListKind {
    /// Owned and replaced as a whole. Also what a list without the extension is.
    #[default]
    Atomic,
    /// A set of scalars, each owned by itself.
    Set,
    /// A list of objects told apart by the values of these fields.
    Map {
        /// The key fields (`x-kubernetes-list-map-keys`), in declared order.
        keys: Vec<Box<str>>,
    },
}

/// How server-side apply merges an object (`x-kubernetes-map-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MapKind {
    /// Each field is owned by itself.
    #[default]
    Granular,
    /// Owned and replaced as a whole.
    Atomic,
}

/// How a strategic merge patch treats a field (`x-kubernetes-patch-strategy`, `x-kubernetes-patch-merge-key`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PatchStrategy {
    /// A list is merged element by element instead of replaced.
    pub merge: bool,
    /// The field that tells the objects of a merged list apart; `None` for a merged list of scalars.
    pub merge_key: Option<Box<str>>,
    /// The patch may carry `$retainKeys`: fields not named there are dropped.
    pub retain_keys: bool,
}

/// A rule in the Common Expression Language (`x-kubernetes-validations`). This crate keeps it as data; evaluating it is
/// the API server's part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CelRule {
    /// The expression; `self` is the value at the schema's place.
    pub rule: Box<str>,
    /// What the user is told when the rule fails.
    pub message: Option<Box<str>>,
    /// An expression that makes the message; wins over `message`.
    pub message_expression: Option<Box<str>>,
    /// The reason of the cause, one of `FieldValueInvalid` (when absent), `FieldValueForbidden`, `FieldValueRequired`, `FieldValueDuplicate`.
    pub reason: Option<Box<str>>,
    /// A JSON path, relative to the schema's place, that the cause names instead.
    pub field_path: Option<Box<str>>,
    /// The rule runs on creation too, with `oldSelf` as an optional.
    pub optional_old_self: bool,
}

/// What a value must fulfil beyond its type. Schemas without any such rule have none of this.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// The allowed values (`enum`).
    pub allowed: Vec<Value>,
    /// The least number allowed.
    pub minimum: Option<f64>,
    /// `minimum` itself is not allowed.
    pub exclusive_minimum: bool,
    /// The greatest number allowed.
    pub maximum: Option<f64>,
    /// `maximum` itself is not allowed.
    pub exclusive_maximum: bool,
    /// The number must be a whole multiple of this.
    pub multiple_of: Option<f64>,
    /// Least length of a string, in code points.
    pub min_length: Option<u64>,
    /// Greatest length of a string, in code points.
    pub max_length: Option<u64>,
    /// The string must match somewhere.
    pub pattern: Option<Pattern>,
    /// Least number of elements of a list.
    pub min_items: Option<u64>,
    /// Greatest number of elements of a list.
    pub max_items: Option<u64>,
    /// No two elements may be equal.
    pub unique_items: bool,
    /// Least number of fields of an object.
    pub min_properties: Option<u64>,
    /// Greatest number of fields of an object.
    pub max_properties: Option<u64>,
    /// All of these must hold.
    pub all_of: Vec<Arc<Schema>>,
    /// At least one of these must hold.
    pub any_of: Vec<Arc<Schema>>,
    /// Exactly one of these must hold.
    pub one_of: Vec<Arc<Schema>>,
    /// This must not hold.
    pub not: Option<Arc<Schema>>,
}

impl Rules {
    /// Tells whether there is any rule in it.
    pub fn is_some(&self) -> bool {
        let Self {
            allowed,
            minimum,
            exclusive_minimum: _,
            maximum,
            exclusive_maximum: _,
            multiple_of,
            min_length,
            max_length,
            pattern,
            min_items,
            max_items,
            unique_items,
            min_properties,
            max_properties,
            all_of,
            any_of,
            one_of,
            not,
        } = self;
        !allowed.is_empty()
            || minimum.or(*maximum).or(*multiple_of).is_some()
            || min_length
                .or(*max_length)
                .or(*min_items)
                .or(*max_items)
                .or(*min_properties)
                .or(*max_properties)
                .is_some()
            || pattern.is_some()
            || *unique_items
            || !(all_of.is_empty() && any_of.is_empty() && one_of.is_empty())
            || not.is_some()
    }
}

/// A regular expression with its source text.
#[derive(Debug, Clone)]
pub struct Pattern {
    source: Box<str>,
    regex: regex::Regex,
}

impl Pattern {
    /// Compiles an expression. The syntax is that of the `regex` crate, which is the RE2 family that Kubernetes uses.
    pub fn new(source: &str) -> Result<Self, regex::Error> {
        Ok(Self { source: source.into(), regex: regex::Regex::new(source)? })
    }

    /// The text that was compiled.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Tells whether the expression matches somewhere in the text.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

/// The schema of one value.
///
/// A schema with a [`reference`](Self::reference) stands for the definition of that name: its other fields hold only what
/// belongs to the place of use (description, default, list and patch facts, and properties with further value rules). Every function of this crate that takes a
/// schema follows the reference; others do it with [`Definitions::resolve`].
#[derive(Debug, Clone, Default)]
pub struct Schema {
    /// The name of a definition, such as `io.k8s.api.core.v1.PodSpec`.
    pub reference: Option<Arc<str>>,
    /// The JSON type.
    pub ty: Type,
    /// OpenAPI's `format`, such as `int32`, `date-time`, `byte`.
    pub format: Option<Box<str>>,
    /// The first sentence of the documentation.
    pub description: Option<Box<str>>,
    /// `null` is a value; where this is false `null` counts as absent.
    pub nullable: bool,
    /// The known fields of an object.
    pub properties: BTreeMap<Box<str>, Arc<Schema>>,
    /// The schema of the values of a map.
    pub additional: Option<Arc<Schema>>,
    /// The schema of the elements of a list.
    pub items: Option<Arc<Schema>>,
    /// Fields that must be there.
    pub required: Vec<Box<str>>,
    /// The value that an absent field gets.
    pub default: Option<Value>,
    /// Fields that are not known are kept (`x-kubernetes-preserve-unknown-fields`).
    pub preserve_unknown: bool,
    /// The object is a complete resource with apiVersion, kind and metadata (`x-kubernetes-embedded-resource`).
    pub embedded: bool,
    /// How server-side apply merges a list here.
    pub list: ListKind,
    /// How server-side apply merges an object here.
    pub map: MapKind,
    /// How a strategic merge patch treats this field.
    pub patch: PatchStrategy,
    /// Value rules; `None` when there are none.
    pub rules: Option<Box<Rules>>,
    /// Rules in the Common Expression Language, kept as data.
    pub validations: Vec<CelRule>,
}

impl Schema {
    /// A schema that stands for the definition of this name.
    pub fn reference(name: impl Into<Arc<str>>) -> Self {
        Self { reference: Some(name.into()), ..Self::default() }
    }

    /// Tells whether the value is a map from string to one type, rather than an object with known fields.
    pub fn is_map(&self) -> bool {
        self.additional.is_some()
    }
}

/// Named schemas that references point to.
#[derive(Debug, Clone, Default)]
pub struct Definitions {
    by_name: BTreeMap<Arc<str>, Arc<Schema>>,
}

impl Definitions {
    /// An empty table, enough for a custom resource whose schema has no references.
    pub fn new() -> Self {
        Self::default()
    }

    /// The definition of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Schema>> {
        self.by_name.get(name)
    }

    /// Adds or replaces a definition.
    pub fn insert(&mut self, name: impl Into<Arc<str>>, schema: Schema) {
        self.by_name.insert(name.into(), Arc::new(schema));
    }

    /// Follows the reference of a schema. A schema without one, or with one that leads nowhere, is its own answer.
    ///
    /// List, patch and default facts of the place of use are on the schema given, not on the answer.
    pub fn resolve<'a>(&'a self, schema: &'a Schema) -> &'a Schema {
        match &schema.reference {
            Some(name) => self.by_name.get(name).map_or(schema, Arc::as_ref),
            None => schema,
        }
    }

    /// How server-side apply treats an object at this place: atomic if either the place or the definition says so.
    pub fn map_kind(&self, schema: &Schema) -> MapKind {
        if schema.map == MapKind::Atomic { MapKind::Atomic } else { self.resolve(schema).map }
    }

    /// All definitions in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Schema>)> {
        self.by_name.iter()
    }

    /// How many definitions there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Tells whether there is no definition.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}
