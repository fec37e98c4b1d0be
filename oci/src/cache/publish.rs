//! Making content: it is written in `staging` under the exclusive lock, and published by one
//! rename.

use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::renameat;

use super::content::Content;
use super::error::CacheError;
use super::layer_cache::{LayerCache, names};
use super::lock::LayerLock;
use super::lookup::{Cached, LayerState};
use super::staged::Staged;
use super::wait::Wait;
use crate::host::remove::remove_tree;
use crate::unpack::facts::LayerFacts;

/// Time between two attempts to take a lock that another process holds. It is short compared with
/// the time to unpack a layer, and long compared with the time of an attempt.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// A way to make content of the cache.
pub(crate) trait Recipe {
    /// The form of the content.
    type Content: Content;

    /// Returns the name of the content in the cache.
    fn name(&self) -> String;

    /// Makes the content in a directory.
    fn make(&mut self, staged: &Staged<'_>) -> Result<(), CacheError>;

    /// Returns whether content of this name, which is correct in itself, is what this recipe makes.
    /// Other content is damaged.
    fn accepts(&self, _content: &Self::Content) -> bool {
        true
    }

    /// Reports that another process is making the content. The cache calls this every few
    /// milliseconds, and an error ends the wait.
    fn wait(&mut self) -> Result<(), CacheError>;
}

impl LayerCache {
    /// Returns the content that `recipe` makes, and makes it first if it is not in the cache.
    ///
    /// If another process is making the same content, this waits for that process, and makes the
    /// content itself if the other process fails. The wait has an end, see [`Wait`].
    pub(crate) fn get_or_make<R: Recipe>(
        &self,
        recipe: &mut R,
    ) -> Result<Cached<R::Content>, CacheError> {
        let name = recipe.name();
        let (mut hit, mut wait) = (true, Wait::for_lock(&name));
        loop {
            if let Some(cached) = self.get(&name)?
                && recipe.accepts(&cached.content)
            {
                return Ok(Cached { hit, ..cached });
            }
            match self.try_lock(&name)? {
                Some(lock) => {
                    // Another process may have published it before the lock was taken.
                    if !self.is_usable(recipe, &name)? {
                        self.make(recipe, &name, &lock)?;
                        hit = false;
                    }
                    drop(lock);
                }
                // Waiting would never end: no process can replace the content while boxes use it.
                None if self.is_damaged_in_use(recipe, &name)? => {
                    return Err(CacheError::Damaged { path: self.layer_path(&name) });
                }
                None => self.wait_for(&mut wait, recipe)?,
            }
        }
    }

    /// Waits a moment for the process that holds a lock, which is making the content of `recipe`.
    pub(crate) fn wait_for(
        &self,
        wait: &mut Wait,
        recipe: &mut impl Recipe,
    ) -> Result<(), CacheError> {
        recipe.wait()?;
        let name = wait.lock().to_owned();
        if let Some((holder, waited)) = wait.go_on(&self.wait_limits, || self.holder(&name)) {
            return Err(CacheError::Busy { path: self.lock_path(&name), holder, waited });
        }
        thread::sleep(LOCK_RETRY);
        Ok(())
    }

    /// Makes and publishes content. The caller holds the exclusive lock of `name`.
    fn make(
        &self,
        recipe: &mut impl Recipe,
        name: &str,
        lock: &LayerLock,
    ) -> Result<(), CacheError> {
        self.sweep()?;
        // The layer is missing or unusable. An unusable one must be removed, because a directory
        // that is not empty would make the rename fail.
        self.discard(name)?;
        let published = self.stage(recipe, name, lock).and_then(|()| self.publish_as(name, name));
        if published.is_err()
            && let Err(errno) = remove_tree(self.staging.as_fd(), name.as_bytes())
        {
            // The caller receives the first error. The next process that unpacks a layer removes
            // the directory.
            tracing::warn!(name, %errno, "cannot remove a staging directory");
        }
        published
    }

    /// Makes the content of `recipe` in the staging directory `name`, which must not exist. `lock` is
    /// the exclusive lock of that name.
    pub(crate) fn stage<R: Recipe>(
        &self,
        recipe: &mut R,
        name: &str,
        lock: &LayerLock,
    ) -> Result<(), CacheError> {
        let staged = Staged::new(self, name, lock)?;
        recipe.make(&staged)?;
        if !self.is_made(recipe, &staged).map_err(staged.error("look at"))? {
            return Err(CacheError::Forged { path: staged.place() });
        }
        staged.mark()
    }

    /// Returns whether a staging directory has what `recipe` makes, as far as its size and its ends
    /// show. Without this check, [`Self::get_or_make`] would make such content again and again.
    fn is_made<R: Recipe>(&self, recipe: &R, staged: &Staged<'_>) -> io::Result<bool> {
        if !staged.has_only(R::Content::FORM)? {
            return Ok(false);
        }
        let Some(content) = R::Content::open(staged.directory())? else { return Ok(false) };
        // The sums of these numbers must not overflow.
        let fits = |facts: LayerFacts| {
            facts.bytes <= self.limits.unpacked_bytes && facts.entries <= self.limits.entries
        };
        Ok(content.facts().is_none_or(fits) && recipe.accepts(&content))
    }

    /// Publishes the staging directory `staged` as the layer `name`, whose exclusive lock the
    /// caller holds.
    pub(crate) fn publish_as(&self, staged: &str, name: &str) -> Result<(), CacheError> {
        renameat(&self.staging, staged, &self.ready, name)
            .map_err(self.error("publish", &format!("ready/{name}")))
    }

    /// Removes the layer `name`, whose exclusive lock the caller holds. Returns whether it existed.
    ///
    /// The layer is first renamed into `staging`, so that no process ever finds a part of it in
    /// `ready`.
    pub(crate) fn discard(&self, name: &str) -> Result<bool, CacheError> {
        // A process that died may have left a staging directory, which would stop the rename.
        self.remove_staged(name)?;
        match renameat(&self.ready, name, &self.staging, name) {
            Ok(()) => self.remove_staged(name).map(|()| true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.error("remove", &format!("ready/{name}"))(errno)),
        }
    }

    /// Removes a layer that this process does not use, unless another process uses it.
    pub(crate) fn forget(&self, name: &str) -> Result<(), CacheError> {
        match self.try_lock(name)? {
            Some(_lock) => self.discard(name).map(drop),
            None => Ok(()),
        }
    }

    /// Removes the staging directory `name`, whose exclusive lock the caller holds.
    pub(crate) fn remove_staged(&self, name: &str) -> Result<(), CacheError> {
        remove_tree(self.staging.as_fd(), name.as_bytes())
            .map_err(self.error("remove", &format!("staging/{name}")))
    }

    /// Removes the staging directories of dead processes. These are the ones whose lock is free:
    /// the kernel releases the locks of a process when it dies.
    pub(crate) fn sweep(&self) -> Result<(), CacheError> {
        for stale in names(&self.staging).map_err(self.error("list", "staging"))? {
            if let Some(_lock) = self.try_lock(&stale)? {
                tracing::debug!(%stale, "removing the staging directory of a dead process");
                self.remove_staged(&stale)?;
            }
        }
        Ok(())
    }

    /// Returns whether the content `name` is ready, correct, and what `recipe` makes.
    fn is_usable<R: Recipe>(&self, recipe: &R, name: &str) -> Result<bool, CacheError> {
        let is_correct = |content: R::Content| recipe.accepts(&content);
        Ok(self.is_ready(name)? && self.open_content(name)?.is_some_and(is_correct))
    }

    /// Returns whether boxes use the content `name` although it is damaged, so that no process is
    /// making it and none can.
    fn is_damaged_in_use<R: Recipe>(&self, recipe: &R, name: &str) -> Result<bool, CacheError> {
        let Some(lease) = self.try_lock_shared(name)? else { return Ok(false) };
        Ok(!self.is_usable(recipe, name)?
            && self.state_of(name)? != LayerState::Missing
            && lease.is_shared())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::cache::record::Record;
    use crate::cache::wait::WaitLimits;

    /// A recipe of content that another process makes.
    struct OfOther;

    impl Recipe for OfOther {
        type Content = Record;

        fn name(&self) -> String {
            "layer".to_owned()
        }

        fn make(&mut self, _staged: &Staged<'_>) -> Result<(), CacheError> {
            panic!("another process holds the lock")
        }

        fn wait(&mut self) -> Result<(), CacheError> {
            Ok(())
        }
    }

    #[test]
    fn wait_for_a_process_that_hangs_ends_with_its_pid() {
        let directory = tempfile::tempdir().unwrap();
        let open = || LayerCache::open(&directory.path().join("cache")).unwrap();
        let other = open();
        let _lock = other.try_lock("layer").unwrap().unwrap();
        let end_after = Duration::from_millis(50);
        let mut cache = open();
        cache.wait_limits = WaitLimits { report_after: Duration::from_millis(20), end_after };
        let began = Instant::now();
        let error = cache.get_or_make(&mut OfOther).unwrap_err();
        assert!(began.elapsed() >= end_after);
        let CacheError::Busy { path, holder, .. } = &error else { panic!("{error:?}") };
        assert!(path.ends_with("locks/layer"), "{path:?}");
        assert_eq!(holder.pid, Some(std::process::id()));
        let expected = format!("process {} has held the lock `", std::process::id());
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}
