//! The cases, and which of them apply to which plugin.

mod add;
mod chain;
mod check;
mod del;
pub(crate) mod effects;
mod effects_main;
mod effects_meta;
mod effects_rules;
mod gc;
mod ipam;
mod lifecycle;
mod protocol;

use std::sync::Arc;

use outrigger_verify_report::{Case, Level, Unmet, Verdict};

use crate::profile::Kind;
use crate::result::VERSIONS;
use crate::scene::Subject;

/// A case that is made for every plugin that it applies to.
struct Template {
    id: &'static str,
    section: &'static str,
    level: Level,
    title: &'static str,
    applies: fn(&Subject) -> bool,
    body: fn(&Arc<Subject>) -> Verdict,
}

const fn template(
    id: &'static str,
    section: &'static str,
    level: Level,
    title: &'static str,
    applies: fn(&Subject) -> bool,
    body: fn(&Arc<Subject>) -> Verdict,
) -> Template {
    Template { id, section, level, title, applies, body }
}

fn all(_: &Subject) -> bool {
    true
}

/// Main plugins, which make an interface; `lo` is not made.
fn main_plugins(subject: &Subject) -> bool {
    subject.profile.kind == Kind::Main
}

fn meta_plugins(subject: &Subject) -> bool {
    subject.profile.kind == Kind::Meta
}

fn ipam_plugins(subject: &Subject) -> bool {
    subject.profile.kind == Kind::Ipam
}

fn delegating_plugins(subject: &Subject) -> bool {
    subject.profile.delegates
}

/// Skips what cannot be tried on a plugin that says it does not know version 1.1.0.
fn needs_1_1(subject: &Subject) -> Verdict {
    if subject.supports("1.1.0") {
        return Ok(());
    }
    Err(Unmet::skip("the plugin does not say that it supports version 1.1.0"))
}

/// All cases for one plugin.
pub(crate) fn of(subject: &Arc<Subject>) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add =
        |id: String, section, level, title: String, needs_add: bool, body: Box<dyn FnOnce() -> Verdict + Send>| {
            let no_add = subject.profile.no_add.filter(|_| needs_add);
            let body = move || no_add.map_or_else(body, |why| Err(Unmet::skip(why)));
            cases.push(Case::new(format!("{}/{id}", subject.name), section, level, title, body));
        };
    let after_add =
        [add::TEMPLATES, del::TEMPLATES, check::TEMPLATES, gc::TEMPLATES, chain::TEMPLATES, ipam::TEMPLATES];
    let tables = after_add.map(|table| (table, true));
    for (table, needs_add) in std::iter::once((protocol::TEMPLATES, false)).chain(tables) {
        for template in table.iter().filter(|template| (template.applies)(subject)) {
            let (body, subject) = (template.body, Arc::clone(subject));
            let body = Box::new(move || body(&subject));
            add(template.id.into(), template.section, template.level, template.title.into(), needs_add, body);
        }
    }
    for version in VERSIONS.iter().filter(|version| subject.supports(version)) {
        for (name, title, body) in lifecycle::BY_VERSION {
            let owned = Arc::clone(subject);
            let body = Box::new(move || body(&owned, version));
            let title = format!("{title} {version}");
            add(format!("versions/{name}-{version}"), "5 Result types", Level::Must, title, true, body);
        }
    }
    for damage in subject.profile.damages {
        let owned = Arc::clone(subject);
        let body = Box::new(move || check::damage(&owned, damage));
        let title = format!("CHECK fails when {}", damage.title);
        add(format!("CHECK/{}", damage.name), "2 CHECK", Level::Must, title, true, body);
    }
    for effect in subject.profile.effects {
        let (body, owned) = (effect.body, Arc::clone(subject));
        let body = Box::new(move || body(&owned));
        add(effect.id.into(), "the plugin's documentation", effect.level, effect.title.into(), true, body);
    }
    cases
}
