//! The daemon: one thread that waits for plugins, servers and times.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use outrigger_cni_sdk::{AddResult, CniArgs, Code, Error, Step as _, Version};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::client::{Action, Client, Profile, Time};
use super::options::{client_id, prepare};
use super::port::{Port, namespace, remove_address, restore_address};
use super::records::{Found, Record, Records};
use super::settings::Settings;
use super::wire::{Command, LONGEST, PROTOCOL, Reply, Request};
use super::{IpamConf, Keys};

/// A plugin has so long to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many plugins are heard at a time; others wait.
const CONNECTIONS: usize = 512;
/// Without a descriptor for another plugin, none is looked for until some may have been given back.
const DEAF: Duration = Duration::from_millis(100);
/// What the original's plugin is told.
const FOREIGN: &[u8] =
    b"HTTP/1.0 400 this is the dhcp daemon of another implementation of the plugin: use the plugin of \
                         the same package\r\nConnection: close\r\n\r\n";

/// Keeps the leases of all containers of this host.
#[derive(Debug)]
pub struct Daemon {
    settings: Settings,
    records: Records,
    boot: String,
    leases: BTreeMap<Key, Entry>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    /// No plugin is listened to before.
    deaf_until: Time,
}

/// Container, network, interface.
type Key = (String, String, String);

#[derive(Debug)]
struct Entry {
    record: Record,
    client: Client,
    port: Option<Port>,
    /// The plugin that waits for the first lease.
    waiting: Option<u64>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    line: Vec<u8>,
    /// What it waits for, once it has said what it wants.
    awaits: Option<Key>,
    until: Time,
}

/// What a descriptor is that became readable.
enum Source {
    Stop,
    Listener,
    Plugin(u64),
    Server(Key),
}

impl Daemon {
    /// Takes up the leases that an earlier daemon kept.
    pub fn start(settings: Settings, boot: String) -> io::Result<Self> {
        let records = Records::beside(&settings.socket_path());
        let mut daemon = Self {
            settings,
            records,
            boot,
            leases: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
            deaf_until: Time::ZERO,
        };
        for found in daemon.records.load(&daemon.boot)? {
            match found {
                Found::Keep(record) => daemon.take_up(record, true),
                Found::Release(record) => daemon.take_up(record, false),
            }
        }
        Ok(daemon)
    }

    /// Works until `stop` becomes readable.
    pub fn run(&mut self, listener: &UnixListener, stop: BorrowedFd<'_>) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        loop {
            self.advance();
            let ready = self.wait(listener, stop)?;
            for source in ready {
                match source {
                    Source::Stop => return Ok(()),
                    Source::Listener => self.accept(listener),
                    Source::Plugin(id) => self.hear(id),
                    Source::Server(key) => self.receive(&key),
                }
            }
        }
    }

    fn wait(&self, listener: &UnixListener, stop: BorrowedFd<'_>) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Stop];
        let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        let mut watch = |fd, source| {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            sources.push(source);
        };
        let now = now();
        let deaf = self.deaf_until > now;
        if self.connections.len() < CONNECTIONS && !deaf {
            watch(listener.as_fd(), Source::Listener);
        }
        for (id, connection) in &self.connections {
            watch(connection.stream.as_fd(), Source::Plugin(*id));
        }
        for (key, entry) in &self.leases {
            if let Some(port) = &entry.port {
                watch(port.as_fd(), Source::Server(key.clone()));
            }
        }
        let leases = self.leases.values().filter_map(|entry| entry.client.wake());
        let plugins = self.connections.values().filter(|connection| connection.awaits.is_none()).map(|c| c.until);
        let hearing = deaf.then_some(self.deaf_until);
        let timeout = leases.chain(plugins).chain(hearing).min().map(|wake| {
            // Rounded up to a millisecond, lest it wakes too early again and again.
            let left = wake.saturating_sub(now) + Duration::from_millis(1);
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        Ok(fds.iter().zip(sources).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, source)| source).collect())
    }

    /// Does what has become due.
    fn advance(&mut self) {
        let now = now();
        let due = |entry: &Entry| entry.client.wake().is_some_and(|wake| wake <= now);
        let due: Vec<Key> = self.leases.iter().filter(|(_, entry)| due(entry)).map(|(key, _)| key.clone()).collect();
        for key in due {
            if let Some(entry) = self.leases.get_mut(&key) {
                let actions = entry.client.tick(now);
                self.act(&key, actions);
            }
        }
        // Those who connect and say nothing.
        self.connections.retain(|_, connection| connection.awaits.is_some() || connection.until > now);
    }

    fn accept(&mut self, listener: &UnixListener) {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                let gone = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted);
                if !gone && error.kind() != io::ErrorKind::Interrupted {
                    // Without descriptors, say: the plugin still waits, and the listener stays readable.
                    let now = now();
                    if now > self.deaf_until + 10 * DEAF {
                        super::log(format_args!("plugins have to wait: {error}"));
                    }
                    self.deaf_until = now + DEAF;
                }
                return;
            }
        };
        if stream.set_nonblocking(true).is_ok() {
            let connection = Connection { stream, line: Vec::new(), awaits: None, until: now() + PATIENCE };
            self.connections.insert(self.next_connection, connection);
            self.next_connection += 1;
        }
    }

    /// Reads what a plugin says, or that it has gone.
    fn hear(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut buffer = [0; 4096];
        let closed = match connection.stream.read(&mut buffer) {
            Ok(0) => true,
            Ok(count) => {
                connection.line.extend(&buffer[..count]);
                connection.line.len() > LONGEST
            }
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        if closed {
            let awaited = self.connections.remove(&id).and_then(|connection| connection.awaits);
            if let Some(key) = awaited {
                log(&key, "the plugin has gone; the lease is not wanted any more");
                self.drop_lease(&key);
            }
            return;
        }
        let Some(end) = connection.line.iter().position(|byte| *byte == b'\n') else { return };
        if connection.awaits.is_some() {
            return;
        }
        let line = std::mem::take(&mut connection.line);
        if line.windows(5).any(|part| part == b"HTTP/") && !line.starts_with(b"{") {
            let _ = connection.stream.write_all(FOREIGN);
            self.connections.remove(&id);
            return;
        }
        let request: Result<Request, _> = serde_json::from_slice(&line[..end]);
        let answer =
            request.step("dhcp daemon: the request cannot be read").and_then(|request| self.serve(id, request));
        match answer {
            Ok(Some(reply)) => self.answer(id, &reply),
            Ok(None) => {}
            Err(error) => self.answer(id, &error.into()),
        }
    }

    /// The final answer to a plugin.
    fn answer(&mut self, id: u64, reply: &Reply) {
        if let Some(mut connection) = self.connections.remove(&id) {
            // A plugin that went away gets none; the runtime calls DEL then.
            let _ = write_line(&mut connection.stream, reply);
        }
    }

    /// Does what a plugin wants. No answer yet if it has to wait for a server.
    fn serve(&mut self, id: u64, request: Request) -> Result<Option<Reply>, Error> {
        if request.protocol != PROTOCOL {
            let msg = format!("dhcp daemon: speaks protocol {PROTOCOL}, not {}: restart it", request.protocol);
            return Err(Error::internal(msg));
        }
        let key = (request.container.clone(), request.network.clone(), request.ifname.clone());
        match request.command {
            Command::Status => {}
            Command::Del => self.drop_lease(&key),
            Command::Check => return self.check(&key).map(|()| Some(Reply::Done(Value::Null))),
            Command::Gc => {
                let gone = |key: &&Key| {
                    key.1 == request.network
                        && !request.valid.iter().any(|valid| (&valid.0, &valid.1) == (&key.0, &key.2))
                };
                let gone: Vec<Key> = self.leases.keys().filter(gone).cloned().collect();
                for key in gone {
                    self.drop_lease(&key);
                }
            }
            Command::Add => return self.add(id, key, &request),
        }
        Ok(Some(Reply::Done(Value::Null)))
    }

    fn check(&self, key: &Key) -> Result<(), Error> {
        let (container, network, ifname) = key;
        let what = format!("dhcp daemon: interface {ifname} of container {container} in network {network}");
        match self.leases.get(key) {
            Some(entry) if entry.client.lease().is_some() => Ok(()),
            Some(entry) if entry.client.is_lost() => {
                Err(Error::internal(format!("{what} has lost its lease; the server does not give the address again")))
            }
            _ => Err(Error::internal(format!("{what} has no lease; delete and add the container"))),
        }
    }

    fn add(&mut self, id: u64, key: Key, request: &Request) -> Result<Option<Reply>, Error> {
        let path = self.settings.netns_path(&request.netns);
        let netns = namespace(&path, None)?;
        let identity = netns.id().step("dhcp")?;
        if let Some(entry) = self.leases.get(&key) {
            if entry.waiting.is_some() {
                return Err(Error::new(Code::TryAgain, "dhcp daemon: an ADD of the same attachment is under way"));
            }
            if entry.client.lease().is_some() && entry.record.identity == identity {
                return result(&entry.record, &entry.client).map(|value| Some(Reply::Done(value)));
            }
            // Of a container that has gone.
            self.drop_lease(&key);
        }
        let Keys { provide, request: asked, priority } = Keys::read(&IpamConf::of(&request.ipam)?)?;
        let name = client_id(&key.0, &key.1, &key.2);
        let options = prepare(&name, &CniArgs::new(request.args.clone()), &provide, &asked)?;
        let mtu = options.get(&super::packet::option::PARAMETER_LIST);
        let mtu = mtu.is_some_and(|list| list.contains(&super::packet::option::MTU));
        let port = Port::open(&netns, &key.2)?;
        let mut record = Record::new(&self.boot, &key.0, &key.1, &key.2);
        record.netns.clone_from(&request.netns);
        record.identity = identity;
        record.hardware = port.hardware();
        record.options = options;
        record.priority = priority;
        record.mtu = mtu;
        let profile = self.profile(&record);
        let wait = Reply::Wait(profile.limit.as_secs() + 1);
        if let Some(connection) = self.connections.get_mut(&id) {
            // If it has gone that is seen at the next reading.
            let _ = write_line(&mut connection.stream, &wait);
            connection.awaits = Some(key.clone());
        }
        log(&key, "looking for a lease");
        let client = Client::new(profile, now(), random());
        self.leases.insert(key, Entry { record, client, port: Some(port), waiting: Some(id) });
        Ok(None)
    }

    fn profile(&self, record: &Record) -> Profile {
        Profile {
            hardware: record.hardware,
            options: record.options.clone(),
            broadcast: self.settings.broadcast,
            timeout: self.settings.timeout,
            resend_max: self.settings.resend_max,
            limit: self.settings.limit(),
        }
    }

    /// Goes on with a lease of an earlier daemon.
    fn take_up(&mut self, record: Record, keep: bool) {
        let key = (record.container.clone(), record.network.clone(), record.ifname.clone());
        let gone = namespace(&self.settings.netns_path(&record.netns), Some(record.identity)).is_err();
        let Some(lease) = record.lease.clone().filter(|_| !gone) else {
            log(&key, "the container has gone; its lease is forgotten");
            self.forget(&key);
            return;
        };
        let given = Duration::from_millis(record.given);
        let client = Client::resume(self.profile(&record), lease, given, now(), random());
        self.leases.insert(key.clone(), Entry { record, client, port: None, waiting: None });
        if keep {
            log(&key, "the lease is kept on");
        } else {
            self.drop_lease(&key);
        }
    }

    /// Takes what came from servers.
    fn receive(&mut self, key: &Key) {
        while let Some(entry) = self.leases.get_mut(key) {
            let Some(port) = &entry.port else { return };
            let actions = match port.receive() {
                Ok(Some((message, from))) => entry.client.receive(now(), &message, from),
                Ok(None) => return,
                Err(error) => {
                    // The interface went down or away. It is opened again when there is something to send.
                    log(key, format_args!("cannot receive: {error}"));
                    entry.port = None;
                    return;
                }
            };
            self.act(key, actions);
        }
    }

    fn act(&mut self, key: &Key, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(message, to) => {
                    let sent = self.port(key).and_then(|port| port.send(&message, to).step("dhcp: sending"));
                    if let Err(error) = sent {
                        // The link may be down, and come up again: the client tries again.
                        log(key, error);
                        if let Some(entry) = self.leases.get_mut(key) {
                            entry.port = None;
                        }
                    }
                }
                Action::Leased { restored } => self.leased(key, restored),
                Action::Lost => {
                    if self.is_gone(key) {
                        log(key, "the lease has ended, and the container has gone");
                        self.leases.remove(key);
                        self.forget(key);
                        return;
                    }
                    log(key, "the lease has ended; its address is taken off");
                    if let Err(error) = self.on_interface(key, false) {
                        log(key, error);
                    }
                }
                Action::Failed(why) => {
                    log(key, &why);
                    let waiting = self.leases.remove(key).and_then(|entry| entry.waiting);
                    if let Some(id) = waiting {
                        let error = Error::new(Code::TryAgain, format!("dhcp: {why}"))
                            .details("see that the interface is connected to a network with a server");
                        self.answer(id, &error.into());
                    }
                }
            }
        }
        if let Some(entry) = self.leases.get_mut(key)
            && !entry.client.listens()
        {
            entry.port = None;
        }
    }

    fn leased(&mut self, key: &Key, restored: bool) {
        if restored && let Err(error) = self.on_interface(key, true) {
            log(key, error);
        }
        let Some(entry) = self.leases.get_mut(key) else { return };
        entry.record.lease = entry.client.lease().cloned();
        entry.record.given = u64::try_from(entry.client.given().as_millis()).unwrap_or(u64::MAX);
        if let Some(lease) = entry.client.lease() {
            log(key, format_args!("leased {} from {}", lease.address, lease.server));
        }
        let answer = entry.waiting.take().map(|id| (id, result(&entry.record, &entry.client)));
        if let Err(error) = self.records.save(&entry.record) {
            log(
                key,
                format_args!(
                    "the lease cannot be kept on disk, a daemon that is started again will not know it: {error}"
                ),
            );
        }
        match answer {
            Some((id, Ok(value))) => self.answer(id, &Reply::Done(value)),
            Some((id, Err(error))) => {
                self.drop_lease(key);
                self.answer(id, &error.into());
            }
            None => {}
        }
    }

    /// Puts the address of a lease on the interface, or takes it off.
    fn on_interface(&self, key: &Key, present: bool) -> Result<(), Error> {
        let Some(entry) = self.leases.get(key) else { return Ok(()) };
        let lease = entry.client.lease().or(entry.record.lease.as_ref());
        let Some(lease) = lease else { return Ok(()) };
        let netns = namespace(&self.settings.netns_path(&entry.record.netns), Some(entry.record.identity))?;
        let net = IpNet::V4(lease.net().step("dhcp")?);
        if !present {
            return remove_address(&netns, &key.2, net);
        }
        let routes = lease.result(entry.record.priority, entry.record.mtu).step("dhcp")?.routes;
        restore_address(&netns, &key.2, net, &routes)
    }

    /// The socket of a lease, opened if need be.
    fn port(&mut self, key: &Key) -> Result<&Port, Error> {
        let Some(entry) = self.leases.get_mut(key) else { return Err(Error::internal("dhcp: no such lease")) };
        // Looked up each time: an open socket would keep a namespace alive that its runtime has let go.
        let netns = namespace(&self.settings.netns_path(&entry.record.netns), Some(entry.record.identity))?;
        let port = match entry.port.take() {
            Some(port) => port,
            None => Port::open(&netns, &key.2)?,
        };
        Ok(entry.port.insert(port))
    }

    /// Whether the container's namespace is no longer where the runtime had it.
    fn is_gone(&self, key: &Key) -> bool {
        self.leases.get(key).is_none_or(|entry| {
            namespace(&self.settings.netns_path(&entry.record.netns), Some(entry.record.identity)).is_err()
        })
    }

    /// Gives a lease back, as well as can be, and forgets it.
    fn drop_lease(&mut self, key: &Key) {
        if let Some((message, to)) = self.leases.get_mut(key).and_then(|entry| entry.client.release()) {
            match self.port(key).and_then(|port| port.send(&message, to).step("dhcp: sending")) {
                Ok(()) => log(key, "released"),
                Err(error) => log(key, format_args!("the server is not told that the lease is free: {error}")),
            }
        }
        self.leases.remove(key);
        self.forget(key);
    }

    fn forget(&self, key: &Key) {
        if let Err(error) = self.records.remove(&key.0, &key.1, &key.2) {
            log(key, format_args!("the record cannot be removed: {error}"));
        }
    }
}

/// The answer to ADD.
fn result(record: &Record, client: &Client) -> Result<Value, Error> {
    let lease = client.lease().ok_or_else(|| Error::internal("dhcp: there is no lease"))?;
    let result: AddResult = lease.result(record.priority, record.mtu).step("dhcp")?;
    result.to_value(Version::NEWEST)
}

fn write_line(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    // Short enough for the socket's buffer; a plugin that does not read must not hold up the others.
    stream.write_all(&line)
}

/// Time since the machine was started, sleep included: leases run on in sleep.
fn now() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// A seed. The standard library draws its keys from the kernel.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

fn log(key: &Key, what: impl Display) {
    let (container, network, ifname) = key;
    super::log(format_args!("{container}/{network}/{ifname}: {what}"));
}

/// Binds the socket. One that a dead daemon left is replaced; of several daemons that start at once, one gets it.
pub fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    // Between the question whether anyone listens and the removal of the socket, no other may bind it.
    let _lock = Records::beside(socket).lock()?;
    match UnixListener::bind(socket) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match UnixStream::connect(socket) {
                Ok(_) => return Err(io::Error::new(error.kind(), "another daemon listens there")),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
            rustix::fs::unlink(socket)?;
            UnixListener::bind(socket)
        }
        result => result,
    }
}

/// The id of this boot.
pub fn boot_id() -> io::Result<String> {
    let mut boot = String::new();
    std::fs::File::open("/proc/sys/kernel/random/boot_id")?.read_to_string(&mut boot)?;
    Ok(boot.trim().to_owned())
}

/// Where a path of the host is for the daemon: as the original, the prefix is simply put in front.
pub fn prefixed(prefix: &Path, path: &Path) -> PathBuf {
    let mut text = prefix.as_os_str().to_owned();
    text.push(path);
    text.into()
}
