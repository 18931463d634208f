// SPDX-License-Identifier: GPL-2.0-only
//! `criu swrk FD`: one request of an engine over the socket FD.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::aside::{self, Given, Speaker, Word};
use super::config::Config;
use super::job::{self, Error, Job, Ready};
use super::relay::Relay;
use super::request::{self, Asked, Kind, Options, Places, Request, encode};
use super::{become_criu, criu, criu_with_plugin, export, is_wanted};
use crate::criu::order::Order;
use crate::criu::rescue::Frozen;
use crate::criu::work;
use crate::engine::export::{ENV as EXPORT, Export};
use crate::process::{self, PidFd};
use crate::snapshot::images;
use crate::snapshot::reference::Reference;
use crate::{socket, text};

/// Where CRIU logs that was not told where.
const LOG: &str = "criu.log";

/// Serves the engine at the other end of `socket`; `args` are what we were started with.
pub fn serve(socket: RawFd, args: &[OsString]) -> ExitCode {
    // SAFETY: the number is what the engine has told us; where nothing is open, all that is
    // done with it fails. It stays open until this process becomes CRIU or ends.
    let engine = unsafe { BorrowedFd::borrow_raw(socket) };
    let client = socket::peer(engine).ok();
    let mut pre_dumped = false;
    loop {
        let message = socket::peek(engine).unwrap_or_default();
        let asked = request::read(&message);
        match asked {
            Asked::PreDump(request, pid) if is_wanted(pid, client) => {
                let done = pre_dump(engine, &request);
                if done.is_err() || request.type_() == Kind::SINGLE_PRE_DUMP {
                    return ExitCode::from(u8::from(done.is_err()));
                }
                pre_dumped = true;
            }
            Asked::Dump(_, pid) if is_wanted(pid, client) => {
                return beside(engine, args, pre_dumped);
            }
            Asked::Restore(request) if refers(engine, &request.opts) => {
                return beside(engine, args, false);
            }
            _ if message.is_empty() && pre_dumped => return ExitCode::SUCCESS,
            _ => return become_criu(criu(args.iter().cloned())),
        }
    }
}

/// Takes the request of a pre-dump and answers it.
fn pre_dump(engine: BorrowedFd<'_>, request: &Request) -> Result<(), Error> {
    socket::receive(engine, true)?;
    let client = Client::of(engine);
    let done = client.and_then(|c| job::pre_dump(c.images(&request.opts)?.as_fd()));
    let answer = match &done {
        Ok(()) => request::answer(request.type_(), true),
        Err(e) => request::failure(request.type_(), libc::EIO, &text::chain(e)),
    };
    socket::send(engine, &encode(&answer), &[])?;
    done
}

/// Whether the images to restore are a reference of ours, whole or damaged.
fn refers(engine: BorrowedFd<'_>, options: &Options) -> bool {
    let images = Client::of(engine).and_then(|c| c.images(options));
    images.is_ok_and(|dir| !matches!(Reference::load_at(dir.as_fd()), Ok(None)))
}

/// Becomes CRIU, with a process beside it that serves the engine.
fn beside(engine: BorrowedFd<'_>, args: &[OsString], pre_dumped: bool) -> ExitCode {
    let started = || {
        let pid = std::process::id().cast_signed();
        let criu = PidFd::open(pid)?;
        let client = Client::of(engine)?;
        // Before a restore runc moves CRIU into the container's group.
        let group = aside::cgroup("self")
            .filter(|g| aside::cgroup(&client.0.to_string()).as_ref() != Some(g));
        let since = process::started(pid)?;
        let keep = vec![engine.as_raw_fd(), criu.as_fd().as_raw_fd()];
        let engine = engine.as_raw_fd();
        let work = move |speaker| {
            // SAFETY: the process beside keeps this descriptor, and nothing in it owns it.
            let engine = unsafe { OwnedFd::from_raw_fd(engine) };
            Beside {
                engine,
                criu,
                pid,
                client,
                pre_dumped,
                container: group.map(|g| (g, since)),
            }
            .work(speaker);
        };
        Ok::<_, Error>(aside::start(keep, client.0, work)?)
    };
    let (word, given) = match started() {
        Ok(listener) => listener.listen(),
        Err(e) => {
            eprintln!("vascriu: {}", text::chain(&e));
            return ExitCode::FAILURE;
        }
    };
    // The engine was told what failed by its socket; standard error may be the container's.
    let Word::Become(mut order) = word else {
        return ExitCode::FAILURE;
    };
    if let Order::Restore(restore) = &mut order {
        restore.engine = Some(engine.as_raw_fd());
    }
    if let Some(socket) = given.socket {
        // SAFETY: puts CRIU's socket in the place of the engine's, which nothing of ours owns.
        unsafe { libc::dup2(socket.as_raw_fd(), engine.as_raw_fd()) };
    }
    match criu_with_plugin(order, given.report, given.reference, args.to_vec()) {
        Ok(command) => become_criu(command),
        Err(_) => ExitCode::FAILURE,
    }
}

/// The process that asks, as CRIU sees it: it is through this process that CRIU opens what
/// a request names by numbers.
#[derive(Debug, Clone, Copy)]
struct Client(i32);

impl Client {
    fn of(engine: BorrowedFd<'_>) -> Result<Self, Error> {
        match socket::peer(engine)? {
            0 => Err(Error::NoClient),
            pid => Ok(Self(pid)),
        }
    }

    fn directory(self, fd: RawFd) -> Result<OwnedFd, Error> {
        open_directory(&PathBuf::from(format!("/proc/{}/fd/{fd}", self.0)))
    }

    /// The same file as the client's descriptor, for writing.
    fn status(self, fd: RawFd) -> Result<OwnedFd, Error> {
        let path = PathBuf::from(format!("/proc/{}/fd/{fd}", self.0));
        let opened = File::options().write(true).open(&path);
        Ok(opened.map_err(|e| Error::Directory(path, e))?.into())
    }

    /// The client's descriptor itself.
    fn take(self, fd: RawFd) -> Result<OwnedFd, Error> {
        let process = PidFd::open(self.0)?;
        // SAFETY: pidfd_getfd takes three integers.
        let taken =
            unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_fd().as_raw_fd(), fd, 0) };
        match RawFd::try_from(taken) {
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error().into()),
        }
    }

    /// Tells whoever reads what it prints; its standard error is that of the engine above it.
    fn tell(self, text: &str) {
        if let Ok(stream) = self.take(libc::STDERR_FILENO) {
            let _ = File::from(stream).write_all(text.as_bytes());
        }
    }

    /// The directory of the images.
    fn images(self, options: &Options) -> Result<OwnedFd, Error> {
        match (options.images_dir_fd.unwrap_or(-1), &options.images_dir) {
            (-1, Some(path)) => open_directory(Path::new(path)),
            (-1, None) => Err(Error::NoDirectory),
            (fd, _) => self.directory(fd),
        }
    }

    /// The directory for logs and statistics.
    fn work(self, options: &Options, images: &OwnedFd) -> Result<OwnedFd, Error> {
        match options.work_dir_fd {
            Some(fd) => self.directory(fd),
            None => Ok(images.try_clone()?),
        }
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let opened = File::open(path).map_err(|e| Error::Directory(path.into(), e))?;
    Ok(opened.into())
}

/// The process beside CRIU.
struct Beside {
    engine: OwnedFd,
    criu: PidFd,
    pid: i32,
    client: Client,
    pre_dumped: bool,
    /// The group of the container that is restored, if CRIU is in it, and since when.
    container: Option<(PathBuf, u64)>,
}

/// What is ready for CRIU.
struct Prepared {
    request: Request,
    job: Ready,
    /// Where CRIU works.
    work: PathBuf,
    /// What the request names by numbers.
    places: Vec<OwnedFd>,
}

impl Beside {
    fn work(self, speaker: Speaker) {
        let Ok(Some(message)) = socket::receive(self.engine.as_fd(), true) else {
            return;
        };
        let asked = request::read(&message.bytes);
        let kind = if matches!(asked, Asked::Restore(_)) {
            Kind::RESTORE
        } else {
            Kind::DUMP
        };
        if let Err(e) = self.serve(asked, speaker) {
            // CRIU has not begun, and never will: the engine gets its answer from us.
            let errno = if e.is_refusal() {
                libc::ENOTSUP
            } else {
                libc::EIO
            };
            let answer = request::failure(kind, errno, &text::chain(&e));
            let _ = socket::send(self.engine.as_fd(), &encode(&answer), &[]);
        }
    }

    fn serve(&self, asked: Asked, speaker: Speaker) -> Result<(), Error> {
        let Prepared {
            request,
            job,
            work,
            places,
        } = self.prepare(asked)?;
        self.warn(&job.order);
        let group = request.opts.freeze_cgroup.clone();
        let frozen = Frozen::look(&group.map_or(vec![], |g| vec!["--freeze-cgroup".into(), g]));
        let (ours, theirs) = socket::pair()?;
        socket::send(ours.as_fd(), &encode(&request), &[])?;
        let given = Given {
            report: Some(job.report.as_fd()),
            reference: job.reference.as_ref().map(AsFd::as_fd),
            socket: Some(theirs.as_fd()),
        };
        speaker.say(&Word::Become(job.order.clone()), &given)?;
        drop(theirs);
        let relay = Relay {
            engine: self.engine.as_fd(),
            criu: ours.as_fd(),
            process: &self.criu,
            pid: self.pid,
        };
        // CRIU has opened all at its first word; who waits for the end of a pipe shall see it.
        let report = job.report;
        let dumps = matches!(job.order, Order::Dump(_));
        let verdict = relay.run(
            || drop(places),
            || dumps || self.has_ended_well(),
            || report.read().error,
        );
        let said = verdict.unwrap_or(None);
        match (&job.order, &self.container) {
            (Order::Dump(order), _) => {
                self.criu.wait();
                let reference = job.reference.as_ref().map(AsFd::as_fd);
                let root = request.opts.pid();
                job::after_dump(order, root, reference, &frozen, said == Some(true));
            }
            (Order::Restore(_), container) if said != Some(true) => {
                self.criu.wait();
                if let Some((group, since)) = container {
                    aside::kill_newer(group, *since);
                }
                work::clear(&work);
            }
            (Order::Restore(_), _) => {}
        }
        Ok(())
    }

    /// Says it where an archive gets a reference: an engine shows nothing of CRIU's log.
    fn warn(&self, order: &Order) {
        let Order::Dump(dump) = order else { return };
        let engine = dump.origin.engine.parse().ok();
        if export(engine, Some(self.client.0)) == Some(Export::Reference) {
            self.client.tell(&format!(
                "vascriu: the memory stays on this machine, in snapshot {}; what is exported only \
                 refers to it. With {EXPORT}=memory in Podman's environment it carries the memory.\n",
                dump.id
            ));
        }
    }

    /// Waits for CRIU's end; whether it was a good one. The engine waits for our message
    /// before it waits for CRIU, so that its status is still there.
    fn has_ended_well(&self) -> bool {
        self.criu.wait();
        process::exit_status(self.pid).is_none_or(|status| status == 0)
    }

    /// Makes ready what CRIU needs; nothing is touched before all is.
    fn prepare(&self, asked: Asked) -> Result<Prepared, Error> {
        let (mut request, pid) = match asked {
            Asked::Dump(request, pid) => (request, Some(pid)),
            Asked::Restore(request) => (request, None),
            _ => return Err(Error::NoDirectory),
        };
        let options = request.opts.mut_or_insert_default();
        let images = self.client.images(options)?;
        let work = self.client.work(options, &images)?;
        let log = images::path(work.as_fd()).join(options.log_file.as_deref().unwrap_or(LOG));
        let ready = self.ready(options, pid, images);
        let job = ready.inspect_err(|e| {
            // Engines show what stands there.
            let _ = fs::write(&log, format!("Error (vascriu): {}\n", text::chain(e)));
        })?;
        let status = options
            .status_fd
            .map(|fd| self.client.status(fd))
            .transpose()?;
        let pidfds = options
            .pidfd_store_sk
            .map(|fd| self.client.take(fd))
            .transpose()?;
        let places = Places {
            images: job.images.as_fd().as_raw_fd(),
            work: work.as_raw_fd(),
            status: status.as_ref().map(AsRawFd::as_raw_fd),
            pidfd_store: pidfds.as_ref().map(AsRawFd::as_raw_fd),
        };
        request::redirect(options, &places);
        let path = fs::read_link(images::path(work.as_fd()))?;
        let places = [Some(work), status, pidfds].into_iter().flatten().collect();
        Ok(Prepared {
            request,
            job,
            work: path,
            places,
        })
    }

    fn ready(
        &self,
        options: &mut Options,
        pid: Option<i32>,
        images: OwnedFd,
    ) -> Result<Ready, Error> {
        let config = Config::read(options.config_file.as_deref().map(Path::new))?;
        let Some(pid) = pid else {
            request::plain(options)?;
            let group = self.container.as_ref().and_then(|(g, _)| aside::group(g));
            if let Some(group) = group {
                request::restore_into(options, &group);
            }
            return Job::Restore { reference: images }.ready();
        };
        let base = images::path(images.as_fd());
        request::plain_dump(options, |parent| {
            self.pre_dumped || job::is_pre_dump(&base.join(parent))
        })?;
        Job::Dump {
            pid,
            client: Some(self.client.0),
            leaves_tasks: options.leave_running() || options.leave_stopped() || config.leaves_tasks,
            reference: images,
        }
        .ready()
    }
}
