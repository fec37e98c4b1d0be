//! Durability: a stack or a block root survives a crash of the machine once it has been written to the disk.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, syncfs, unlinkat};

use super::block_root::BlockRoot;
use super::members::Stack;
use crate::cache::error::CacheError;
use crate::cache::layer_cache::LayerCache;
use crate::cache::lookup::exists;
use crate::cache::name::{BOOT, SYNCED};
use crate::host::directory::OPEN_DIR;

impl LayerCache {
    /// Writes a stack to the disk and marks its layers as synced, so that they survive a crash of
    /// the machine. This can take seconds. The stack can be used in the meantime. Returns whether a
    /// layer had to be written.
    ///
    /// # Errors
    ///
    /// Fails if the file system cannot write. The layers are then unpacked again for the next box.
    pub fn sync(&self, stack: &Stack) -> Result<bool, CacheError> {
        self.sync_names(stack.members.iter().map(|member| member.name.as_str()))
    }

    /// Does the same for a block root.
    ///
    /// # Errors
    ///
    /// Fails for the same reasons as [`sync`](Self::sync).
    pub fn sync_block(&self, root: &BlockRoot) -> Result<bool, CacheError> {
        self.sync_names(root.members.iter().map(|member| member.name.as_str()))
    }

    fn sync_names<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<bool, CacheError> {
        let open = |name: &str| {
            openat(&self.ready, name, OPEN_DIR, Mode::empty())
                .map_err(|errno: Errno| self.error("open", &format!("ready/{name}"))(errno))
        };
        let mut directories =
            names.map(|name| Ok((name, open(name)?))).collect::<Result<Vec<_>, CacheError>>()?;
        directories.retain(|(_, directory)| !exists(directory, SYNCED));
        if directories.is_empty() {
            return Ok(false);
        }
        // syncfs(2) reports each write-back error that happened after its fd was opened. `ready`
        // was opened before this process wrote its first file, so no error is missed.
        let synced = syncfs(&self.ready);
        let mut failure = None;
        for (name, directory) in directories {
            let marked = synced.and_then(|()| make_file(&directory, SYNCED));
            if let Err(errno) = marked {
                // After a write-back error the kernel may drop the pages from the page cache too,
                // so the layer must not count as ready in this boot either.
                let _unmarked = unlinkat(&directory, BOOT, UnlinkatFlags::NoRemoveDir);
                failure.get_or_insert((name, errno));
            }
        }
        match failure {
            None => Ok(true),
            Some((name, errno)) => Err(self.error("sync", &format!("ready/{name}"))(errno)),
        }
    }
}

fn make_file(directory: &OwnedFd, name: &str) -> nix::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::S_IRUSR).map(drop)
}
