// SPDX-License-Identifier: GPL-2.0-only
//! All snapshots: those that the kernel has, and those that are in the store.
//!
//! Nothing is kept beside them. What changes a label, claims a name or removes something
//! holds the device meanwhile ([`Session::exclusive`]).

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::entry::Entry;
use super::id::{Member, SnapshotId, parse_vas};
use super::label::Label;
use super::name::Name;
use crate::device::{
    self, Exclusive, Kept, Session, Stat, StoredSnapshot, VAS_ACCESS_READ, VAS_ACCESS_WRITE,
    VasFile,
};

mod relabel;

/// Fewer digits do not tell a snapshot.
const PREFIX_MIN: usize = 4;
/// How long who only looks at a snapshot, or begins its drain, may hold it.
const PATIENCE: Duration = Duration::from_secs(5);
const BOTH: u32 = VAS_ACCESS_READ | VAS_ACCESS_WRITE;

/// Why that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such snapshot.
    #[error("no snapshot `{0}`; `vascriu ls` shows what there is")]
    Unknown(String),
    /// The beginning of an identity is that of several.
    #[error("`{0}` is the beginning of several snapshots: {1}")]
    Ambiguous(String, String),
    /// The name is another's.
    #[error(
        "the name `{0}` is taken by snapshot {by}: choose another, `--replace` takes it over, `vascriu rm {0}` removes that one", by = .1.short()
    )]
    Taken(Name, SnapshotId),
    /// It is being restored.
    #[error("snapshot `{0}` is in use: it is being restored right now")]
    Busy(String),
    /// Its label is of another version, or no label at all.
    #[error("the label of snapshot {0} cannot be read: it was made by another vascriu")]
    Label(SnapshotId),
    /// The store keeps the old one.
    #[error("the label of the snapshot is changed here, but not in the snapshot store")]
    StoreLabel(#[source] device::Error),
    /// `/dev/vas` refuses.
    #[error(transparent)]
    Device(#[from] device::Error),
}

/// All snapshots of this machine.
#[derive(Debug)]
pub struct Registry {
    session: Session,
}

impl Registry {
    /// Opens it.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open() -> Result<Self, device::Error> {
        Ok(Self::of(Session::open()?))
    }

    /// As this session sees it. What is made by the registry belongs to the session.
    #[must_use]
    pub fn of(session: Session) -> Self {
        Self { session }
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Holds the device against all others that do this; see [`Session::exclusive`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn exclusive(&self) -> Result<Exclusive<'_>, device::Error> {
        self.session.exclusive()
    }

    /// Everything that is made of VASes with our names: each is opened once. Others' may be
    /// forbidden to us, and may vanish meanwhile.
    fn scan(&self) -> Result<BTreeMap<SnapshotId, Entry>, device::Error> {
        let mut all = BTreeMap::new();
        for id in device::list()? {
            let Ok(vas) = self.session.vas(id, VAS_ACCESS_READ) else {
                continue;
            };
            let (Some((id, member)), Ok(stat)) = (parse_vas(vas.name()), vas.stat()) else {
                continue;
            };
            let entry = all.entry(id).or_insert_with(|| Entry::new(id));
            match member {
                Member::Images => {
                    entry.label = vas.label().ok().and_then(|l| Label::parse(&l));
                    entry.images = Some(stat);
                }
                Member::Shared => entry.shared = Some(stat),
                Member::Task(vpid) => entry.tasks.push((vpid, stat)),
            }
        }
        Ok(all)
    }

    /// What the store has; nothing where it does not answer: what is here is as good as ever.
    fn stored(&self) -> Vec<StoredSnapshot> {
        self.session.stored().unwrap_or_default()
    }

    /// Adds what the store has.
    fn scan_store(&self, all: &mut BTreeMap<SnapshotId, Entry>) {
        for stored in self.stored() {
            let Ok(id) = stored.name.parse() else {
                continue; // another program's
            };
            let entry = all.entry(id).or_insert_with(|| Entry::new(id));
            if !entry.is_here() {
                entry.label = Label::parse(&stored.label);
            }
            entry.stored = Some(stored);
        }
    }

    /// Both.
    fn all(&self) -> Result<BTreeMap<SnapshotId, Entry>, device::Error> {
        let mut all = self.scan()?;
        self.scan_store(&mut all);
        Ok(all)
    }

    /// All snapshots, the oldest first.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn list(&self) -> Result<Vec<Entry>, device::Error> {
        let mut list: Vec<_> = self.all()?.into_values().filter(is_one).collect();
        list.sort_by_key(Entry::age);
        give_names_to_the_newest(&mut list);
        for entry in &mut list {
            entry.tasks.sort_by_key(|(vpid, _)| *vpid);
        }
        Ok(list)
    }

    /// The snapshot of this name, this identity, or this beginning of an identity.
    ///
    /// # Errors
    /// None, or several.
    pub fn find(&self, text: &str) -> Result<Entry, Error> {
        choose(self.list()?, text)
    }

    /// As [`Registry::find`], for who only needs the identity. A whole one need not be listed:
    /// the store does not list what is broken there.
    ///
    /// # Errors
    /// As [`Registry::find`].
    pub fn identify(&self, text: &str) -> Result<SnapshotId, Error> {
        match (self.find(text), text.parse()) {
            (Err(Error::Unknown(_)), Ok(id)) => Ok(id),
            (found, _) => Ok(found?.id),
        }
    }

    /// The snapshot of this identity, if there is one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn get(&self, id: SnapshotId) -> Result<Option<Entry>, device::Error> {
        Ok(self.list()?.into_iter().find(|e| e.id == id))
    }

    /// Opens one VAS of a snapshot of this guest for reading.
    ///
    /// # Errors
    /// [`device::Error::Gone`].
    pub fn open_member(&self, id: SnapshotId, member: Member) -> Result<VasFile, device::Error> {
        let name = match member {
            Member::Images => id.images_vas(),
            Member::Shared => id.shared_vas(),
            Member::Task(vpid) => id.task_vas(vpid),
        };
        self.session.vas_by_name(&name, VAS_ACCESS_READ)
    }

    /// Whether the snapshot is here, and whole.
    ///
    /// # Errors
    /// What the kernel says; then it is not known.
    pub fn is_committed(&self, id: SnapshotId) -> Result<bool, device::Error> {
        match self.open_member(id, Member::Images) {
            Err(device::Error::Gone { .. }) => Ok(false),
            vas => Ok(vas?.stat()?.committed),
        }
    }

    /// Makes the `images` VAS of a new snapshot in this session, which claims its name: no
    /// other can have it that is dumped meanwhile, unless it takes it over.
    ///
    /// # Errors
    /// [`Error::Taken`], unless `replace`.
    pub fn claim(&self, id: SnapshotId, label: &Label, replace: bool) -> Result<VasFile, Error> {
        let _held = self.exclusive()?;
        if let (Some(name), false) = (&label.name, replace) {
            self.is_free(name)?;
        }
        let (_, vas) = self.session.create(&id.images_vas(), 0o600)?;
        vas.set_label(&label.text())?;
        Ok(vas)
    }

    /// Refuses a name that a snapshot has, or one that is being dumped.
    ///
    /// # Errors
    /// [`Error::Taken`].
    pub fn is_free(&self, name: &Name) -> Result<(), Error> {
        is_free(&self.all()?, name)
    }

    /// Makes way for a new snapshot: as [`Registry::sweep_expired`] and [`Registry::is_free`], but
    /// the store is asked once.
    ///
    /// # Errors
    /// [`Error::Taken`].
    pub fn make_way(&self, name: Option<&Name>) -> Result<(), Error> {
        let mut all = self.all()?;
        all.retain(|_, e| !(is_one(e) && self.removes_expired(e)));
        name.map_or(Ok(()), |name| is_free(&all, name))
    }

    /// Open files of all VASes of a snapshot, that of its images first.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn members(&self, id: SnapshotId) -> Result<Vec<VasFile>, device::Error> {
        let mut found = Vec::new();
        for vas in device::list()? {
            // Others' VASes may be forbidden to us, and may vanish.
            let Ok(file) = self.session.vas(vas, VAS_ACCESS_READ) else {
                continue;
            };
            match parse_vas(file.name()) {
                Some((of, member)) if of == id => {
                    found.push((member != Member::Images, self.session.vas(vas, BOTH)?));
                }
                _ => {}
            }
        }
        found.sort_by_key(|(is_memory, _)| *is_memory);
        Ok(found.into_iter().map(|(_, file)| file).collect())
    }

    /// Removes a snapshot, here and in the store, a drain that is under way included.
    ///
    /// # Errors
    /// [`Error::Busy`], unless `force`: then nothing was removed.
    pub fn remove(&self, id: SnapshotId, force: bool) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            match self.remove_now(id, force) {
                Err(Error::Busy(_)) if begun.elapsed() < PATIENCE => {
                    sleep(Duration::from_millis(20));
                }
                done => return done,
            }
        }
    }

    fn remove_now(&self, id: SnapshotId, force: bool) -> Result<(), Error> {
        let _held = self.exclusive()?;
        let members = self.members(id)?;
        let stats: Vec<_> = members
            .iter()
            .map(VasFile::stat)
            .collect::<Result<_, _>>()?;
        if !force && stats.iter().any(|s| s.users > 1) {
            return Err(Error::Busy(id.short()));
        }
        for (i, vas) in members.iter().enumerate() {
            // Without its images it is no snapshot any more: from then on all must go.
            match vas.delete(force || i > 0) {
                Err(device::Error::Busy { .. }) => return Err(Error::Busy(id.short())),
                done => done?,
            }
        }
        for vas in &members {
            // A drain notices soon; until then the snapshot may still become complete.
            while vas.stat()?.store == Kept::Draining {
                sleep(Duration::from_millis(2));
            }
        }
        if !stats.is_empty() && stats.iter().all(|s| s.store == Kept::Hot) {
            return Ok(()); // the store never had it, or has it no more
        }
        match self.session.unstore(&id.to_string()) {
            Err(device::Error::NoStore | device::Error::NotStored(_)) if members.is_empty() => {
                Err(Error::Unknown(id.to_string()))
            }
            // Another microVM has removed it.
            Err(device::Error::NoStore | device::Error::NotStored(_)) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Removes the snapshots whose time is over, but for those that are in use; says which.
    ///
    /// # Errors
    /// What the kernel says of all of them.
    pub fn sweep_expired(&self) -> Result<Vec<Entry>, device::Error> {
        let mut list = self.list()?;
        list.retain(|e| self.removes_expired(e));
        Ok(list)
    }

    /// Removes a snapshot whose time is over and that is not in use; whether it was one.
    fn removes_expired(&self, entry: &Entry) -> bool {
        entry.label.as_ref().is_some_and(Label::has_expired)
            && self.remove_now(entry.id, false).is_ok()
    }

    /// Removes what a killed [`Registry::remove`] has left: memory that was part of a
    /// snapshot whose images are gone. Says what the kernel said of it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn gc(&self, dry_run: bool) -> Result<Vec<Stat>, device::Error> {
        let _held = self.exclusive()?;
        let mut gone = Vec::new();
        for entry in self.scan()?.into_values().filter(|e| !e.is_here()) {
            for stat in entry.stats().filter(|s| s.committed) {
                let deleted = || self.session.vas(stat.id, BOTH)?.delete(false);
                match if dry_run { Ok(()) } else { deleted() } {
                    // A restore that began before the removal; or it has just gone.
                    Err(device::Error::Busy { .. } | device::Error::Gone { .. }) => {}
                    done => {
                        done?;
                        gone.push(stat.clone());
                    }
                }
            }
        }
        Ok(gone)
    }
}

/// Whether it is a complete snapshot.
fn is_one(entry: &Entry) -> bool {
    entry.is_committed() || (!entry.is_here() && entry.stored.is_some())
}

fn is_free(all: &BTreeMap<SnapshotId, Entry>, name: &Name) -> Result<(), Error> {
    match all.values().find(|e| e.name() == Some(name)) {
        Some(other) => Err(Error::Taken(name.clone(), other.id)),
        None => Ok(()),
    }
}

/// Of several with the same name only the newest has it. `list` begins with the oldest.
fn give_names_to_the_newest(list: &mut [Entry]) {
    let mut names = std::collections::HashSet::new();
    for label in list.iter_mut().rev().filter_map(|e| e.label.as_mut()) {
        if label
            .name
            .as_ref()
            .is_some_and(|n| !names.insert(n.clone()))
        {
            label.name = None;
        }
    }
}

fn choose(list: Vec<Entry>, text: &str) -> Result<Entry, Error> {
    if let Some(named) = list
        .iter()
        .find(|e| e.name().is_some_and(|n| n.as_str() == text))
    {
        return Ok(named.clone());
    }
    let is_meant = |e: &Entry| text.len() >= PREFIX_MIN && e.id.to_string().starts_with(text);
    let mut found: Vec<_> = list.into_iter().filter(is_meant).collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            found.push(last);
            let ids: Vec<_> = found.iter().map(|e| e.id.short()).collect();
            Err(Error::Ambiguous(text.into(), ids.join(" ")))
        }
        (None, _) => Err(Error::Unknown(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::entry;
    use super::*;

    #[test]
    fn of_two_with_a_name_the_newer_has_it() {
        let mut list = vec![
            entry(Some("web"), 1, 9),
            entry(Some("db"), 1, 2),
            entry(Some("web"), 2, 3),
            entry(Some("web"), 2, 4),
            entry(None, 3, 5),
        ];
        list.sort_by_key(Entry::age);
        give_names_to_the_newest(&mut list);
        let names: Vec<_> = list.iter().map(|e| e.name().map(Name::as_str)).collect();
        assert_eq!(names, [Some("db"), None, None, Some("web"), None]);
    }

    #[test]
    fn a_snapshot_is_found_by_name_identity_or_its_beginning() {
        let list = vec![entry(Some("web"), 1, 1), entry(None, 2, 2)];
        let id = list[1].id;
        for text in ["web", &id.to_string(), &id.short()] {
            assert!(choose(list.clone(), text).is_ok(), "{text}");
        }
        for text in ["", "we", &id.to_string()[..3], "fffffffffffffffff"] {
            assert!(
                matches!(choose(list.clone(), text), Err(Error::Unknown(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn the_beginning_of_two_identities_tells_none() {
        let mut list = vec![entry(None, 1, 1), entry(None, 2, 2)];
        list[0].id = "aaaa0000000000000000000000000000".parse().expect("id");
        list[1].id = "aaaa1000000000000000000000000000".parse().expect("id");
        assert!(matches!(
            choose(list.clone(), "aaaa"),
            Err(Error::Ambiguous(..))
        ));
        assert!(choose(list, "aaaa1").is_ok());
    }

    #[test]
    fn a_name_goes_before_an_identity_that_begins_alike() {
        let mut list = vec![entry(None, 1, 1), entry(Some("beef"), 2, 2)];
        list[0].id = "beef0000000000000000000000000000".parse().expect("id");
        assert_eq!(choose(list.clone(), "beef").expect("named").id, list[1].id);
    }
}
