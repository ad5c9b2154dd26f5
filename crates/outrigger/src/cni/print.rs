//! How `outrigger cni` prints.

use std::fmt::Write as _;

use outrigger_cni_sdk::AddResult;
use outrigger_cni_sdk::runtime::{Attachment, Invocation, NetworkList};
use serde_json::{Value, json};

/// Rows under a heading, each column as wide as its widest cell.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|name| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let heading: Vec<String> = heading.iter().map(|name| (*name).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// A cell that says that there is nothing.
pub(super) fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "-".to_owned() } else { text }
}

pub(super) fn pretty(value: &Value) -> String {
    format!("{value:#}")
}

/// The result of ADD for people.
pub(super) fn result(network: &NetworkList, attachment: &Attachment, result: &AddResult) -> String {
    let mut text = format!(
        "{} is attached to {} (version {}) as {}\n",
        attachment.container_id, network.name, network.version, attachment.ifname
    );
    if !result.interfaces.is_empty() {
        let rows = result.interfaces.iter().enumerate().map(|(index, interface)| {
            vec![
                index.to_string(),
                interface.name.clone(),
                or_dash(interface.mac.as_str()),
                or_dash(interface.mtu.map(|mtu| mtu.to_string()).unwrap_or_default()),
                if interface.sandbox.is_empty() { "host".to_owned() } else { interface.sandbox.clone() },
            ]
        });
        let rows: Vec<_> = rows.collect();
        let _ = writeln!(text, "\n{}", table(&["#", "INTERFACE", "MAC", "MTU", "WHERE"], &rows));
    }
    if !result.ips.is_empty() {
        let rows = result.ips.iter().map(|ip| {
            let interface = ip.interface.and_then(|index| result.interfaces.get(usize::try_from(index).ok()?));
            vec![
                ip.address.to_string(),
                or_dash(ip.gateway.map(|gateway| gateway.to_string()).unwrap_or_default()),
                or_dash(interface.map(|interface| interface.name.clone()).unwrap_or_default()),
            ]
        });
        let _ = writeln!(text, "\n{}", table(&["ADDRESS", "GATEWAY", "INTERFACE"], &rows.collect::<Vec<_>>()));
    }
    if !result.routes.is_empty() {
        let rows = result.routes.iter().map(|route| {
            vec![route.dst.to_string(), route.gw.map_or_else(|| "the address' gateway".to_owned(), |gw| gw.to_string())]
        });
        let _ = writeln!(text, "\n{}", table(&["ROUTE", "VIA"], &rows.collect::<Vec<_>>()));
    }
    if !result.dns.is_empty() {
        let dns = &result.dns;
        let _ = writeln!(
            text,
            "\nname servers {}; domain {}; search {}; options {}",
            or_dash(dns.nameservers.join(" ")),
            or_dash(dns.domain.as_str()),
            or_dash(dns.search.join(" ")),
            or_dash(dns.options.join(" ")),
        );
    }
    text.trim_end().to_owned()
}

/// A call as a command that can be run by hand.
pub(super) fn invocation(call: &Invocation) -> String {
    let variables: Vec<_> = call
        .environment
        .variables()
        .into_iter()
        .map(|(name, value)| format!("{name}={}", quoted(&value.to_string_lossy())))
        .collect();
    let path = call.path.as_ref().map_or_else(|| call.plugin.clone(), |path| path.display().to_string());
    let missing = if call.path.is_some() { "" } else { " (not installed)" };
    format!(
        "# {} by plugin {} of the list, {:?}{missing}\nenv {} \\\n  {} <<'EOF'\n{}\nEOF",
        call.command(),
        call.index + 1,
        call.plugin,
        variables.join(" "),
        quoted(&path),
        pretty(&call.stdin)
    )
}

/// The same for programs.
pub(super) fn invocation_json(call: &Invocation) -> Value {
    let environment: serde_json::Map<_, _> = call
        .environment
        .variables()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), json!(value.to_string_lossy())))
        .collect();
    json!({ "plugin": call.plugin, "index": call.index, "path": call.path, "env": environment, "stdin": call.stdin })
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '=' | ',' | '@' | '+');
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["länger".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME    N\na       1\nlänger");
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("/opt/cni/bin:/x"), "/opt/cni/bin:/x");
        assert_eq!(quoted("a=b;c='d'"), r"'a=b;c='\''d'\'''");
        assert_eq!(quoted(""), "''");
    }
}
