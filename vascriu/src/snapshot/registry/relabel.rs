// SPDX-License-Identifier: GPL-2.0-only
//! Names and counts: a snapshot's label is changed here and in the store. Other processes of this
//! microVM are held off by the registry's lock; other microVMs, whom it does not hold, by the
//! store: it takes a label only in place of the one that was read.

use super::{BOTH, Error, Registry};
use crate::device::{self, Kept, VasFile};
use crate::snapshot::id::SnapshotId;
use crate::snapshot::label::Label;
use crate::snapshot::name::Name;

/// How often a label is read once more, because another microVM has changed it meanwhile.
const ATTEMPTS: u32 = 100;

impl Registry {
    /// Gives a snapshot another name.
    ///
    /// # Errors
    /// [`Error::Taken`]; with `replace`, whoever has the name loses it.
    pub fn rename(&self, id: SnapshotId, name: &Name, replace: bool) -> Result<(), Error> {
        let _held = self.exclusive()?;
        if !replace {
            self.is_free(name)?;
        }
        for other in self
            .list()?
            .iter()
            .filter(|e| e.id != id && e.name() == Some(name))
        {
            self.change_held(other.id, |label| label.name = None)?;
        }
        self.change_held(id, |label| label.name = Some(name.clone()))
    }

    /// Changes the label of a snapshot, here and in the store.
    ///
    /// # Errors
    /// No such snapshot, or one whose label we cannot read.
    pub fn change_label(
        &self,
        id: SnapshotId,
        change: impl FnMut(&mut Label),
    ) -> Result<(), Error> {
        let _held = self.exclusive()?;
        self.change_held(id, change)
    }

    fn change_held(&self, id: SnapshotId, mut change: impl FnMut(&mut Label)) -> Result<(), Error> {
        let vas = match self.session.vas_by_name(&id.images_vas(), BOTH) {
            Err(device::Error::Gone { .. }) => None,
            vas => Some(vas?),
        };
        let here = match &vas {
            Some(vas) => Some(Label::parse(&vas.label()?).ok_or(Error::Label(id))?),
            None => None,
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.change_once(id, vas.as_ref(), here.as_ref(), &mut change) {
                // By another microVM: what it wrote is read, too.
                Err(Error::StoreLabel(device::Error::Relabelled(_))) if attempts < ATTEMPTS => {}
                done => return done,
            }
        }
    }

    /// [`device::Error::Relabelled`]: nothing was changed in the store.
    fn change_once(
        &self,
        id: SnapshotId,
        vas: Option<&VasFile>,
        here: Option<&Label>,
        change: &mut impl FnMut(&mut Label),
    ) -> Result<(), Error> {
        let is_draining = match vas {
            Some(vas) => vas.stat()?.store == Kept::Draining,
            None => false,
        };
        let name = id.to_string();
        let stored = self.stored().into_iter().find(|s| s.name == name);
        if vas.is_none() && stored.is_none() {
            return Err(Error::Unknown(name));
        }
        let there = stored.as_ref().and_then(|s| Label::parse(&s.label));
        let mut label = here.or(there.as_ref()).ok_or(Error::Label(id))?.clone();
        // Another microVM may have restored it, too.
        label.restored = label.restored.max(there.map_or(0, |l| l.restored));
        change(&mut label);
        // Here first: a drain that is completed meanwhile takes it along.
        if let Some(vas) = vas {
            vas.set_label(&label.text())?;
        }
        let from = match &stored {
            Some(stored) => stored.label.as_str(),
            None if is_draining => "",
            None => return Ok(()),
        };
        match self.session.store_label(&name, from, &label.text()) {
            // Not complete yet: it gets its label from here; or removed there meanwhile.
            Err(device::Error::NotStored(_)) => Ok(()),
            done => done.map_err(Error::StoreLabel),
        }
    }
}
