//! Rules of the kinds that make pods from a template.

use outrigger_lab_machinery::selector::Label;
use outrigger_lab_schema::FieldError;
use serde_json::Value;

use crate::object::{at, text};

/// Selector and template belong together; the template makes valid pods that always restart.
pub(crate) fn workload(new: &Value, _: Option<&Value>, errors: &mut Vec<FieldError>) {
    let missing = |field: &str, errors: &[FieldError]| !errors.iter().any(|error| error.field == field);
    match at(new, &["spec", "selector"]) {
        None | Some(Value::Null) => {
            if missing("spec.selector", errors) {
                errors.push(FieldError::required("spec.selector", ""));
            }
        }
        Some(selector) => match Label::from_object(selector) {
            Err(error) => errors.push(FieldError::invalid("spec.selector", selector, &error.to_string())),
            Ok(parsed) if parsed.is_everything() => {
                errors.push(FieldError::invalid(
                    "spec.selector",
                    selector,
                    "empty selector is invalid for this resource",
                ));
            }
            Ok(parsed) => {
                let template = at(new, &["spec", "template"]).unwrap_or(&Value::Null);
                if !parsed.matches_object(template) {
                    let labels = at(template, &["metadata", "labels"]).unwrap_or(&Value::Null);
                    errors.push(FieldError::invalid(
                        "spec.template.metadata.labels",
                        labels,
                        "`selector` does not match template `labels`",
                    ));
                }
            }
        },
    }
    if at(new, &["spec", "replicas"]).and_then(Value::as_i64).is_some_and(|replicas| replicas < 0) {
        errors.push(FieldError::invalid(
            "spec.replicas",
            &new["spec"]["replicas"],
            "must be greater than or equal to 0",
        ));
    }
    if let Some(spec) = at(new, &["spec", "template", "spec"]) {
        super::pod::spec(spec, "spec.template.spec", errors);
        if text(spec, &["restartPolicy"]) != "Always" {
            errors.push(FieldError::not_supported(
                "spec.template.spec.restartPolicy",
                &spec["restartPolicy"],
                ["Always"],
            ));
        }
    }
}
