//! Taking an attachment down: what DEL and GC of the main plugins share.

use outrigger_cni_sdk::{Attachment, Call, Conf, Error, Errors, Step as _};

use super::{Mark, mark};
use crate::session::Session;

/// DEL of a main plugin: the interface, then the rules whose removal `plan_rules` plans, and last the addresses, since
/// whoever gets them next must not meet these rules. That includes the rules of a chain's other plugins, whose DEL comes
/// before. Goes on after an error, but an address whose interface may still be there is not given to others.
pub(crate) fn del<C: Conf>(session: &Session, call: &Call<'_, C>, plan_rules: impl FnOnce()) -> Result<(), Error> {
    let mut errors = Errors::new();
    let release_first = speaks_through_the_interface(call);
    if release_first {
        errors.push(call.ipam().del());
    }
    if errors.push(delete_link(session, call)).is_some() && !release_first {
        errors.push(call.ipam().del());
    }
    plan_rules();
    errors.push(session.commit_rules());
    errors.finish()
}

/// GC of a main plugin: as [`del`], for all attachments of the network that are not valid.
pub(crate) fn gc<C: Conf>(
    session: &Session,
    call: &Call<'_, C>,
    valid: &[Attachment],
    plan_rules: impl FnOnce(),
) -> Result<(), Error> {
    let mut errors = Errors::new();
    let release_first = speaks_through_the_interface(call);
    if release_first {
        errors.push(call.ipam().gc(valid));
    }
    if errors.push(collect_links(session, &call.net.name, valid)).is_some() && !release_first {
        errors.push(call.ipam().gc(valid));
    }
    plan_rules();
    errors.push(session.commit_rules());
    errors.finish()
}

/// A DHCP server can be told that an address is free only while there is an interface to tell it from.
fn speaks_through_the_interface<C: Conf>(call: &Call<'_, C>) -> bool {
    call.net.ipam_type() == Some("dhcp")
}

/// Removes the interface of a DEL's attachment: through the container's namespace, or, when that is gone or was not
/// given, the host's end of its pair, which the mark tells. It is no error if there is none.
fn delete_link<C: Conf>(session: &Session, call: &Call<'_, C>) -> Result<(), Error> {
    match session.container_if_any(call.netns)? {
        Some(container) => match container.route.delete_link(call.ifname) {
            Err(error) if !error.is_not_found() => Err(error).step(format_args!("delete {}", call.ifname)),
            _ => Ok(()),
        },
        None => delete_marked(session, |found| found == mark(call)),
    }
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
