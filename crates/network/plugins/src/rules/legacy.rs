//! Rules that the original plugins made through iptables-legacy, whose tables nf_tables does not show.
//!
//! DEL and GC remove them, and CHECK accepts them, by the tools of iptables-legacy. These are started only where the kernel
//! says that it has such a table, so it costs other hosts nothing. ADD makes none.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use outrigger_cni_sdk::{Code, Error, Step as _};

use super::Kept;

/// Where the tools are if PATH does not lead to them.
const DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// How often a removal is planned again because others changed the rules meanwhile.
const ATTEMPTS: u32 = 4;

/// A rule as the tools print it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// The chain that it is in.
    pub chain: String,
    /// The rest, as it is printed.
    text: String,
    words: Vec<String>,
}

impl Line {
    /// The value of an option.
    pub(crate) fn value(&self, option: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| word == option)?;
        self.words.get(at + 1).map(String::as_str)
    }

    /// The chain or target that it leads to.
    pub(crate) fn target(&self) -> Option<&str> {
        self.value("-j").or_else(|| self.value("-g"))
    }

    /// Its comment.
    pub(crate) fn comment(&self) -> Option<&str> {
        self.value("--comment")
    }
}

/// A table of one IP version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    chains: Vec<String>,
    pub(crate) lines: Vec<Line>,
}

impl Table {
    /// Reads what `iptables-legacy-save` printed.
    fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                table.chains.extend(chain.split(' ').next().map(str::to_owned));
            } else if let Some((chain, text)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
                table.lines.push(Line { chain: chain.to_owned(), text: text.to_owned(), words: words(text) });
            }
        }
        table
    }

    /// Whether there is a rule.
    pub(crate) fn has(&self, chain: &str, is_it: impl Fn(&Line) -> bool) -> bool {
        self.lines.iter().any(|line| line.chain == chain && is_it(line))
    }

    /// What `iptables-legacy-restore` is told to remove these chains with the rules that lead to them, and these rules; none
    /// if there is nothing to remove.
    fn removal(&self, name: &str, doomed: &Doomed<'_>) -> Option<String> {
        let chains: Vec<&String> = self.chains.iter().filter(|chain| (doomed.chains)(self, chain)).collect();
        let is_doomed = |chain: &str| chains.iter().any(|doomed| *doomed == chain);
        let mut commands = String::new();
        for line in self.lines.iter().filter(|line| !is_doomed(&line.chain)) {
            if line.target().is_some_and(is_doomed) || (doomed.lines)(line) {
                let _ = writeln!(commands, "-D {} {}", line.chain, line.text);
            }
        }
        for command in ["-F", "-X"] {
            for chain in &chains {
                let _ = writeln!(commands, "{command} {chain}");
            }
        }
        (!commands.is_empty()).then(|| format!("*{name}\n{commands}COMMIT\n"))
    }
}

/// What is to be removed.
pub(crate) struct Doomed<'a> {
    /// These chains, and all that leads to them.
    pub chains: &'a dyn Fn(&Table, &str) -> bool,
    /// These rules of other chains.
    pub lines: &'a dyn Fn(&Line) -> bool,
}

/// The words of a rule, quoted ones without their quotes.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(letters.next()),
            ' ' if !quoted => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// A table, if the kernel has it and there are tools for it.
pub(crate) fn table(v6: bool, name: &str) -> Result<Option<Table>, Error> {
    if !is_there(v6, name) {
        return Ok(None);
    }
    let Some(output) = run(v6, "save", &["-t", name], "")? else { return Ok(None) };
    Ok(Some(Table::parse(&String::from_utf8_lossy(&output.stdout))))
}

/// Removes rules and chains from the table of both IP versions.
pub(crate) fn remove(name: &str, doomed: &Doomed<'_>) -> Result<(), Error> {
    for v6 in [false, true] {
        let mut attempt = 1;
        while let Some(commands) = table(v6, name)?.and_then(|table| table.removal(name, doomed)) {
            match run(v6, "restore", &["--noflush", "--wait=5"], &commands) {
                Ok(_) => break,
                Err(error) if attempt == ATTEMPTS => return Err(Error { code: Code::TryAgain, ..error }),
                // Others may have removed some of it.
                Err(_) => attempt += 1,
            }
        }
    }
    Ok(())
}

/// Removes the chains, named with this prefix, to which rules in `entry` lead whose comments say that they are of containers
/// without attachment.
pub(crate) fn remove_stale(
    name: &str,
    entry: &str,
    prefix: &str,
    comments: &str,
    kept: &Kept<'_>,
) -> Result<(), Error> {
    let is_stale = |line: &Line| line.comment().is_some_and(|comment| kept.is_stale_comment(comments, comment));
    let is_doomed = |table: &Table, chain: &str| {
        chain.starts_with(prefix) && table.has(entry, |line| line.target() == Some(chain) && is_stale(line))
    };
    remove(name, &Doomed { chains: &is_doomed, lines: &|_| false })
}

/// Whether the kernel has the table in this network namespace.
fn is_there(v6: bool, name: &str) -> bool {
    let path = if v6 { "/proc/thread-self/net/ip6_tables_names" } else { "/proc/thread-self/net/ip_tables_names" };
    let mut names = String::new();
    // Without the file the kernel has no such tables at all.
    let read = std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut names));
    read.is_ok() && names.lines().any(|known| known == name)
}

/// Runs a tool of iptables-legacy; none if there is none, so that nobody can have made rules by it.
fn run(v6: bool, action: &str, arguments: &[&str], input: &str) -> Result<Option<Output>, Error> {
    let tool = if v6 { "ip6tables" } else { "iptables" };
    let what = || format!("run {tool}-legacy-{action}");
    let mut found = first_of(&format!("{tool}-legacy-{action}"), arguments, input).step(what())?;
    if found.is_none() {
        // Where there is but one, it has no second name.
        let name = format!("{tool}-{action}");
        let version = first_of(&name, &["--version"], "").step(what())?;
        if version.is_some_and(|output| !String::from_utf8_lossy(&output.stdout).contains("nf_tables")) {
            found = first_of(&name, arguments, input).step(what())?;
        }
    }
    let Some(output) = found else { return Ok(None) };
    if output.status.success() {
        return Ok(Some(output));
    }
    let words = String::from_utf8_lossy(&output.stderr);
    // Runtimes take these words for a container that has gone.
    let lower = words.to_lowercase();
    let harmless = !lower.contains("no such file") && !lower.contains("not found");
    let first = words.lines().next().filter(|_| harmless).unwrap_or("it failed");
    Err(Error::internal(format!("{}: {first} ({})", what(), output.status)))
}

/// Runs a program from where it is first found; none if it is nowhere.
fn first_of(name: &str, arguments: &[&str], input: &str) -> io::Result<Option<Output>> {
    let elsewhere = DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
    for program in std::iter::once(PathBuf::from(name)).chain(elsewhere) {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => continue,
            child => child?,
        };
        if let Some(mut stdin) = child.stdin.take() {
            // One that fails early does not read; its status says so.
            let _ = stdin.write_all(input.as_bytes());
        }
        return child.wait_with_output().map(Some);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save v1.8.9
*nat
:POSTROUTING ACCEPT [0:0]
:CNI-DN-one - [0:0]
:CNI-DN-two - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A POSTROUTING -s 10.1.0.5/32 -m comment --comment plain -j ACCEPT
-A CNI-DN-one -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.1.0.5:80
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"net\" id: \"one\"" -m multiport --dports 80,81 -j CNI-DN-one
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"net\" id: \"two\"" -m multiport --dports 82 -j CNI-DN-two
COMMIT
"#;

    #[test]
    fn read_as_printed() {
        let table = Table::parse(SAVED);
        assert_eq!(table.chains, ["POSTROUTING", "CNI-DN-one", "CNI-DN-two", "CNI-HOSTPORT-DNAT"]);
        assert_eq!(table.lines.len(), 4);
        let line = &table.lines[2];
        assert_eq!((line.chain.as_str(), line.target()), ("CNI-HOSTPORT-DNAT", Some("CNI-DN-one")));
        assert_eq!(line.comment(), Some("dnat name: \"net\" id: \"one\""));
        assert_eq!(line.value("--dports"), Some("80,81"));
        assert_eq!(table.lines[0].comment(), Some("plain"));
        assert!(table.has("CNI-DN-one", |line| line.value("--to-destination") == Some("10.1.0.5:80")));
        assert_eq!(words(r#"a "b \\ \"c" "" d"#), ["a", r#"b \ "c"#, "", "d"]);
    }

    #[test]
    fn removed_with_all_that_leads_there() {
        let table = Table::parse(SAVED);
        let none = |_: &Line| false;
        let doomed = Doomed { chains: &|_, chain| chain == "CNI-DN-one", lines: &none };
        let wanted = concat!(
            "*nat\n",
            r#"-D CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"net\" id: \"one\"" -m multiport --dports 80,81 "#,
            "-j CNI-DN-one\n-F CNI-DN-one\n-X CNI-DN-one\nCOMMIT\n"
        );
        assert_eq!(table.removal("nat", &doomed).unwrap(), wanted);
        assert_eq!(table.removal("nat", &Doomed { chains: &|_, _| false, lines: &none }), None);
        let by_comment = |line: &Line| line.comment() == Some("plain");
        assert_eq!(
            table.removal("nat", &Doomed { chains: &|_, _| false, lines: &by_comment }).unwrap(),
            "*nat\n-D POSTROUTING -s 10.1.0.5/32 -m comment --comment plain -j ACCEPT\nCOMMIT\n"
        );
    }
}
