//! Taking an attachment down: what DEL and GC of the main plugins share.

use outrigger_cni_sdk::{Attachment, Call, Conf, Error, Errors, Ipam, Step as _};

use super::{Mark, mark};
use crate::session::Session;

/// DEL of a main plugin: the interface, then the rules whose removal `plan_rules` plans, and last the addresses, since
/// whoever gets them next must not meet these rules. In a chain the rules of its other plugins, whose DEL comes before, go
/// by the same transaction. Goes on after an error, but an address whose interface or rules may still be there is not given
/// to others.
pub(crate) fn del<C: Conf>(session: &Session, call: &Call<'_, C>, plan_rules: impl FnOnce()) -> Result<(), Error> {
    release_around(call, Ipam::del, || {
        let mut errors = Errors::new();
        errors.push(delete_link(session, call));
        plan_rules();
        errors.push(session.commit_gathered());
        errors.finish()
    })
}

/// GC of a main plugin: as [`del`], for all attachments of the network that are not valid.
pub(crate) fn gc<C: Conf>(
    session: &Session,
    call: &Call<'_, C>,
    valid: &[Attachment],
    plan_rules: impl FnOnce(),
) -> Result<(), Error> {
    release_around(
        call,
        |ipam| ipam.gc(valid),
        || {
            let mut errors = Errors::new();
            errors.push(collect_links(session, &call.net.name, valid));
            plan_rules();
            errors.push(session.commit_gathered());
            errors.finish()
        },
    )
}

/// Takes away what uses addresses, and has `ipam` release them: afterwards, if all of it went. But a DHCP server can be told
/// that an address is free only while there is an interface to tell it from.
pub(crate) fn release_around<'a, C: Conf>(
    call: &'a Call<'_, C>,
    release: impl FnOnce(&Ipam<'a>) -> Result<(), Error>,
    take_away: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    let ipam = call.ipam();
    let mut errors = Errors::new();
    if call.net.ipam_type() == Some("dhcp") {
        errors.push(release(&ipam));
        errors.push(take_away());
    } else if errors.push(take_away()).is_some() {
        errors.push(release(&ipam));
    }
    errors.finish()
}

/// Removes the interface of a DEL's attachment: through the container's namespace, or, when that is gone or was not given,
/// or the interface has another name by now, the host's end of its pair, which the mark tells. It is no error if there is
/// none.
fn delete_link<C: Conf>(session: &Session, call: &Call<'_, C>) -> Result<(), Error> {
    if let Some(container) = session.container_if_any(call.netns)?
        && super::delete_link(&container.route, call.ifname)?
    {
        return Ok(());
    }
    delete_marked(session, |found| found == mark(call))
}

/// Removes links on the host by their marks. Goes on after an error.
fn delete_marked(session: &Session, mut doomed: impl FnMut(Mark<'_>) -> bool) -> Result<(), Error> {
    let host = session.host()?;
    let mut errors = Errors::new();
    for link in host.links().step("list the links of the host")? {
        if link.alias.as_deref().and_then(Mark::parse).is_some_and(&mut doomed) {
            match host.delete_link(link.index) {
                Err(error) if !error.is_not_found() => {
                    errors.push(Err::<(), _>(error).step(format_args!("delete {}", link.name)));
                }
                _ => {}
            }
        }
    }
    errors.finish()
}

/// Removes the links of this network whose attachment is not in the list (GC).
fn collect_links(session: &Session, network: &str, valid: &[Attachment]) -> Result<(), Error> {
    delete_marked(session, |mark| {
        mark.network == network && !valid.iter().any(|attachment| attachment.is(mark.container_id, mark.ifname))
    })
}
