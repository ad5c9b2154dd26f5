//! Which settings an administrator allows.

use std::fs::File;
use std::io::{self, Read as _};

use outrigger_cni_sdk::{Error, Step as _};
use regex_lite::Regex;

const FILE: &str = "/etc/cni/tuning/allowlist.conf";

/// Fails if one of these keys is not allowed on this node.
pub(super) fn check(keys: &[String]) -> Result<(), Error> {
    // Most configurations have no settings.
    if keys.is_empty() {
        return Ok(());
    }
    let Some(list) = read()? else { return Ok(()) };
    match keys.iter().find(|key| !list.iter().any(|pattern| pattern.is_match(key))) {
        None => Ok(()),
        Some(key) => Err(Error::config(format!("sysctl: {key:?} is not allowed by {FILE}"))),
    }
}

/// The patterns; none if there is no list, which allows everything.
pub(super) fn read() -> Result<Option<Vec<Regex>>, Error> {
    let mut text = String::new();
    match File::open(FILE).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => parse(&text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).step(format_args!("read {FILE}")),
    }
}

fn parse(text: &str) -> Result<Vec<Regex>, Error> {
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
    lines
        .map(|(number, line)| {
            let line_number = number + 1;
            Regex::new(line).map_err(|error| {
                Error::config(format!("{FILE}, line {line_number}: {line:?} is no regular expression: {error}"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn patterns_match_anywhere_unless_they_say_otherwise() {
        let list = parse("\n  ^net\\.core\\.[a-z]+$ \n\nlog_martians\n").unwrap();
        assert_eq!(list.len(), 2);
        let allowed = |key: &str| list.iter().any(|pattern| pattern.is_match(key));
        assert!(allowed("net.core.somaxconn"));
        assert!(!allowed("net.core.rmem_max"));
        assert!(allowed("net.ipv4.conf.IFNAME.log_martians"));
        assert!(parse("a\n(b").unwrap_err().msg.contains("line 2"));
    }
}
