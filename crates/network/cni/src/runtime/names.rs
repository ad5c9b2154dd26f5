//! Which names are allowed (specification, section 2, and what the plugins check).

use super::error::Error;

/// Longest name of a network interface.
const INTERFACE: usize = 15;

/// Container ids and network names: a letter or digit, then letters, digits, `_`, `.` and `-`.
fn identifier(name: &str) -> Result<(), &'static str> {
    let mut chars = name.chars();
    match chars.next() {
        None => return Err("it is empty"),
        Some(first) if !first.is_ascii_alphanumeric() => return Err("it must begin with a letter or digit"),
        Some(_) => {}
    }
    if chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')) {
        Ok(())
    } else {
        Err("only letters, digits, '_', '.' and '-' are allowed")
    }
}

pub(super) fn container(id: &str) -> Result<(), &'static str> {
    identifier(id)
}

pub(super) fn network(name: &str) -> Result<(), &'static str> {
    identifier(name)
}

pub(super) fn interface(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("it is empty"),
        "." | ".." => Err("it is reserved"),
        _ if name.len() > INTERFACE => Err("it is longer than 15 bytes"),
        _ if name.chars().any(|c| matches!(c, '/' | ':' | '\0') || c.is_whitespace()) => {
            Err("'/', ':' and white space are not allowed")
        }
        _ => Ok(()),
    }
}

pub(super) fn check_container(id: &str) -> Result<(), Error> {
    container(id).map_err(|problem| argument("container id", id, problem))
}

pub(super) fn check_interface(name: &str) -> Result<(), Error> {
    interface(name).map_err(|problem| argument("interface name", name, problem))
}

pub(super) fn check_network(name: &str) -> Result<(), Error> {
    network(name).map_err(|problem| argument("network name", name, problem))
}

fn argument(what: &'static str, value: &str, problem: &str) -> Error {
    Error::Argument { what, value: value.to_owned(), problem: problem.to_owned() }
}
