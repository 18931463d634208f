// SPDX-License-Identifier: GPL-2.0-only
//! What an engine asks of `criu swrk`: which requests are ours, what of them cannot be
//! done, what CRIU is told instead, and what the engine is answered.
//!
//! The messages are CRIU's own definitions. Fields that these do not have are kept when
//! a message is encoded again, so that a newer engine and a newer CRIU understand each other.

use std::os::fd::RawFd;
use std::path::Path;

use protobuf::Message;
use rust_criu::rust_criu_protobuf::rpc::{
    Cgroup_root, Criu_dump_resp, Criu_opts, Criu_req, Criu_req_type, Criu_resp, Criu_restore_resp,
};

/// The kinds of requests and answers.
pub use rust_criu::rust_criu_protobuf::rpc::Criu_req_type as Kind;
/// A request, as it travels.
pub type Request = Criu_req;
/// An answer, as it travels.
pub type Answer = Criu_resp;
/// The options of a request.
pub type Options = Criu_opts;

/// What an engine wants, as far as it concerns us.
#[derive(Debug, PartialEq)]
pub enum Asked {
    /// Nothing of ours, or nothing that we understand: it is the stock CRIU's.
    Stock,
    /// To copy memory of the tree of this process, ahead of a dump.
    PreDump(Request, i32),
    /// To dump the tree of this process.
    Dump(Request, i32),
    /// To restore.
    Restore(Request),
}

/// Why something is refused, before a task is touched.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// Memory on demand.
    #[error(
        "lazy pages do not go with vascriu: the memory is attached at once; there is nothing to load later"
    )]
    Lazy,
    /// Memory through a connection.
    #[error(
        "a page server does not go with vascriu: the memory stays in this machine's DRAM (`vascriu drain` puts it into the snapshot store)"
    )]
    PageServer,
    /// A dump on top of an earlier one.
    #[error(
        "the parent images {0} are no pre-dump of vascriu: nothing is copied, so there is nothing to save by steps; dump without a parent"
    )]
    Parent(String),
    /// Holes in earlier images.
    #[error("auto-dedup does not go with vascriu: there are no pages in the images")]
    Dedup,
    /// Without rights.
    #[error(
        "an unprivileged CRIU does not go with vascriu: /dev/vas needs the rights that this does without"
    )]
    Unprivileged,
}

/// Looks at an engine's message.
#[must_use]
pub fn read(message: &[u8]) -> Asked {
    let Ok(request) = Request::parse_from_bytes(message) else {
        return Asked::Stock;
    };
    // CRIU itself refuses to be kept open for any of these.
    if request.opts.is_none() || request.keep_open() {
        return Asked::Stock;
    }
    match (kind(&request), request.opts.pid) {
        // Without a PID it is the engine itself that wants to be dumped.
        (Some(Kind::DUMP), Some(pid)) if pid > 0 => Asked::Dump(request, pid),
        (Some(Kind::PRE_DUMP | Kind::SINGLE_PRE_DUMP), Some(pid)) => Asked::PreDump(request, pid),
        (Some(Kind::RESTORE), _) => Asked::Restore(request),
        _ => Asked::Stock,
    }
}

fn kind(request: &Request) -> Option<Kind> {
    request.type_?.enum_value().ok()
}

/// Takes out of a dump what need not be done, and refuses what cannot be.
/// `is_pre_dump` tells whether parent images are those of a pre-dump of ours, of which
/// the dump on top is an ordinary dump.
///
/// # Errors
/// [`Refused`].
pub fn plain_dump(
    options: &mut Options,
    is_pre_dump: impl Fn(&Path) -> bool,
) -> Result<(), Refused> {
    plain(options)?;
    if options.auto_dedup() {
        return Err(Refused::Dedup);
    }
    if let Some(parent) = options.parent_img.take()
        && !is_pre_dump(Path::new(&parent))
    {
        return Err(Refused::Parent(parent));
    }
    // It asks for marks that only a dump on top of this one would read.
    options.track_mem = None;
    Ok(())
}

/// Refuses what can be done neither in a dump nor in a restore.
///
/// # Errors
/// [`Refused`].
pub fn plain(options: &Options) -> Result<(), Refused> {
    if options.lazy_pages() {
        return Err(Refused::Lazy);
    }
    if options.ps.is_some() {
        return Err(Refused::PageServer);
    }
    if options.unprivileged() {
        return Err(Refused::Unprivileged);
    }
    Ok(())
}

/// Descriptors of the process that CRIU takes for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// Where the images are, or go.
    pub images: RawFd,
    /// Where logs and statistics go.
    pub work: RawFd,
    /// What CRIU tells that it is ready.
    pub status: Option<RawFd>,
    /// The socket that CRIU keeps pidfds in.
    pub pidfd_store: Option<RawFd>,
}

/// Has CRIU take everything from these places.
pub fn redirect(options: &mut Options, places: &Places) {
    options.images_dir = None;
    options.images_dir_fd = Some(places.images);
    options.work_dir_fd = Some(places.work);
    options.status_fd = places.status;
    options.pidfd_store_sk = places.pidfd_store;
}

/// Has CRIU restore into this group what was dumped in the container's. With cgroup v2 runc
/// does not say so, and CRIU would put the tasks into the group of the container that was dumped:
/// past the limits of the one that is restored, and where nobody looks for them.
pub fn restore_into(options: &mut Options, group: &str) {
    if options.cg_root.is_empty() {
        let mut root = Cgroup_root::new();
        root.set_path(group.into());
        options.cg_root.push(root);
    }
}

/// The message of a request or an answer.
///
/// # Panics
/// Without a field that the message must have, which is a mistake of ours.
#[must_use]
pub fn encode(message: &impl Message) -> Vec<u8> {
    message
        .write_to_bytes()
        .expect("the message has what it must have")
}

/// What answers a request of that kind, as CRIU would.
#[must_use]
pub fn answer(kind: Kind, success: bool) -> Answer {
    let mut answer = Answer::new();
    answer.set_type(kind);
    answer.set_success(success);
    match kind {
        Criu_req_type::DUMP => {
            let mut dump = Criu_dump_resp::new();
            dump.set_restored(false);
            answer.dump = Some(dump).into();
        }
        Criu_req_type::RESTORE => {
            let mut restore = Criu_restore_resp::new();
            restore.set_pid(-1);
            answer.restore = Some(restore).into();
        }
        _ => {}
    }
    answer
}

/// What answers a request that fails, with the reason.
#[must_use]
pub fn failure(kind: Kind, errno: i32, why: &str) -> Answer {
    let mut answer = answer(kind, false);
    answer.set_cr_errno(errno);
    answer.set_cr_errmsg(why.into());
    answer
}

/// Puts a reason before what CRIU says of its failure.
pub fn explain(answer: &mut Answer, why: &str) {
    let said = match answer.cr_errmsg.take() {
        Some(criu) if !criu.is_empty() => format!("{why}\n{criu}"),
        _ => why.to_owned(),
    };
    answer.set_cr_errmsg(said);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(kind: Kind, change: impl FnOnce(&mut Options)) -> Request {
        let mut options = Options::new();
        options.set_images_dir_fd(5);
        options.set_pid(812);
        change(&mut options);
        let mut request = Request::new();
        request.set_type(kind);
        request.opts = Some(options).into();
        request
    }

    fn plain_request(change: impl FnOnce(&mut Options)) -> Result<Request, Refused> {
        let mut request = request(Kind::DUMP, change);
        let options = request.opts.as_mut().expect("options");
        plain_dump(options, |p| p == Path::new("../pre")).map(|()| request)
    }

    /// A field that nobody has defined: number 2000, a varint.
    const UNKNOWN: &[u8] = &[0x80, 0x7d, 0x2a];

    #[test]
    fn dumps_restores_and_pre_dumps_are_ours() {
        let read = |kind| read(&encode(&request(kind, |_| {})));
        assert!(matches!(read(Kind::DUMP), Asked::Dump(_, 812)));
        assert!(matches!(read(Kind::RESTORE), Asked::Restore(_)));
        for kind in [Kind::PRE_DUMP, Kind::SINGLE_PRE_DUMP] {
            assert!(matches!(read(kind), Asked::PreDump(r, 812) if r.type_() == kind));
        }
    }

    #[test]
    fn everything_else_is_the_stock_crius() {
        for kind in [
            Kind::EMPTY,
            Kind::CHECK,
            Kind::PAGE_SERVER,
            Kind::NOTIFY,
            Kind::CPUINFO_DUMP,
            Kind::FEATURE_CHECK,
            Kind::VERSION,
            Kind::WAIT_PID,
        ] {
            assert_eq!(read(&encode(&request(kind, |_| {}))), Asked::Stock);
        }
        let self_dump = request(Kind::DUMP, |o| o.pid = None);
        assert_eq!(read(&encode(&self_dump)), Asked::Stock);
        let mut kept_open = request(Kind::DUMP, |_| {});
        kept_open.set_keep_open(true);
        assert_eq!(read(&encode(&kept_open)), Asked::Stock);
        let mut bare = Request::new();
        bare.set_type(Kind::DUMP);
        assert_eq!(read(&encode(&bare)), Asked::Stock);
    }

    proptest! {
        #[test]
        fn noise_is_the_stock_crius_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&bytes);
        }

        #[test]
        fn what_we_do_not_know_reaches_criu(
            root in "[a-z/]{0,20}", external in prop::collection::vec("[a-z:]{1,9}", 0..4), bit: bool
        ) {
            // The options are the last field but one: unknown fields go into both messages.
            let mut options = encode(&*request(Kind::DUMP, |o| {
                o.set_root(root.clone());
                o.external = external.clone();
                o.set_tcp_established(bit);
            }).opts);
            options.extend(UNKNOWN);
            let mut message = vec![0x08, 1, 0x12, 0, 0];
            let len = options.len();
            message[3] = u8::try_from(len & 0x7f | 0x80).expect("a byte");
            message[4] = u8::try_from(len >> 7).expect("a byte");
            message.extend(options);
            message.extend(UNKNOWN);

            let Asked::Dump(mut request, 812) = read(&message) else {
                return Err(TestCaseError::fail("a dump"));
            };
            let options = request.opts.as_mut().expect("options");
            redirect(options, &Places { images: 7, work: 8, status: None, pidfd_store: None });
            let sent = encode(&request);

            let contains = sent.windows(UNKNOWN.len()).filter(|w| *w == UNKNOWN).count();
            prop_assert!(contains >= 2, "{sent:x?}");
            let back = Request::parse_from_bytes(&sent).expect("a request");
            prop_assert_eq!(back.opts.root(), root);
            prop_assert_eq!(&back.opts.external, &external);
            prop_assert_eq!(back.opts.tcp_established, Some(bit));
        }
    }

    #[test]
    fn criu_finds_everything_at_the_places_it_is_told() {
        let mut request = request(Kind::DUMP, |o| {
            o.set_images_dir("/x".into());
            o.set_status_fd(9);
            o.set_pidfd_store_sk(10);
        });
        let places = Places {
            images: 3,
            work: 4,
            status: Some(5),
            pidfd_store: Some(6),
        };
        redirect(request.opts.as_mut().expect("options"), &places);
        let options = &request.opts;
        assert_eq!((options.images_dir_fd(), options.work_dir_fd()), (3, 4));
        assert_eq!((options.status_fd(), options.pidfd_store_sk()), (5, 6));
        assert_eq!(options.images_dir, None);
    }

    #[test]
    fn tasks_are_restored_into_the_group_of_their_container_unless_the_engine_says_where() {
        let mut options = Options::new();
        for group in ["/c2", "/c3"] {
            restore_into(&mut options, group);
            assert_eq!(options.cg_root.len(), 1);
            assert_eq!(options.cg_root[0].path(), "/c2");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_reason() {
        let lazy = plain_request(|o| o.set_lazy_pages(true));
        assert_eq!(lazy, Err(Refused::Lazy));
        let server = plain_request(|o| o.ps = Some(Default::default()).into());
        assert_eq!(server, Err(Refused::PageServer));
        let dedup = plain_request(|o| o.set_auto_dedup(true));
        assert_eq!(dedup, Err(Refused::Dedup));
        let parent = plain_request(|o| o.set_parent_img("../other".into()));
        assert_eq!(parent, Err(Refused::Parent("../other".into())));
    }

    #[test]
    fn what_engines_always_say_is_not_refused() {
        let runc = plain_request(|o| {
            o.set_auto_dedup(false);
            o.set_lazy_pages(false);
        });
        assert!(runc.is_ok());
    }

    #[test]
    fn a_dump_on_a_pre_dump_of_ours_is_an_ordinary_dump() {
        let request = plain_request(|o| {
            o.set_parent_img("../pre".into());
            o.set_track_mem(true);
        });
        let options = request.expect("not refused").opts.unwrap();
        assert_eq!((options.parent_img, options.track_mem), (None, None));
    }

    #[test]
    fn a_failure_is_a_whole_answer_that_names_the_reason() {
        for kind in [Kind::DUMP, Kind::RESTORE, Kind::PRE_DUMP] {
            let bytes = encode(&failure(kind, libc::ENOTSUP, "no"));
            let answer = Answer::parse_from_bytes(&bytes).expect("an answer");
            assert_eq!((answer.type_(), answer.success()), (kind, false));
            assert_eq!(
                (answer.cr_errno(), answer.cr_errmsg()),
                (libc::ENOTSUP, "no")
            );
        }
    }

    #[test]
    fn our_reason_comes_before_crius() {
        let mut with = failure(Kind::DUMP, 0, "Error (criu): x");
        explain(&mut with, "no room");
        assert_eq!(with.cr_errmsg(), "no room\nError (criu): x");
        let mut without = answer(Kind::DUMP, false);
        explain(&mut without, "no room");
        assert_eq!(without.cr_errmsg(), "no room");
    }
}
