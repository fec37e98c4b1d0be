//! `user[:group]` resolved in the guest's own `/etc/passwd` and `/etc/group`, as Docker does.
//!
//! The rules: a number is always an id, and needs no entry; a name needs one. Without a
//! group, it is the one of the user's entry, and the supplementary groups are those that
//! list the user. With a group, there are no supplementary ones.
//!
//! The files are the image's: bounded, and a line that makes no sense is skipped.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::syscall::Credentials;

/// Largest file that is read: some ten thousand accounts.
const MAX_BYTES: u64 = 1024 * 1024;

/// Largest id that Docker accepts.
const MAX_ID: u32 = (1 << 31) - 1;

/// Most supplementary groups that Linux gives a process (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// Home of an account that has no entry.
const DEFAULT_HOME: &str = "/";

/// Why a user cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    /// A file exists and cannot be read.
    #[error("cannot read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file that is none, or is beyond the limit.
    #[error("`{path}`: expected a regular file of at most {MAX_BYTES} bytes", path = path.display())]
    NotUsable {
        /// The file.
        path: PathBuf,
    },
    /// No entry of that name.
    #[error("user `{name}`: found no entry in `/etc/passwd`, expected one or a numeric id")]
    UnknownUser {
        /// As given.
        name: String,
    },
    /// No entry of that name.
    #[error("group `{name}`: found no entry in `/etc/group`, expected one or a numeric id")]
    UnknownGroup {
        /// As given.
        name: String,
    },
    /// A number that is no id.
    #[error("id `{found}`: expected at most {MAX_ID}")]
    IdOutOfRange {
        /// As given.
        found: String,
    },
}

/// A user, resolved.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// Ids.
    pub(crate) credentials: Credentials,
    /// Home directory.
    pub(crate) home: String,
}

/// The content of both files.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Accounts {
    /// Reads the files below `root`. A missing one has no entries.
    pub(crate) fn read(root: &Path) -> Result<Self, AccountError> {
        Ok(Self {
            passwd: read_bounded(root.join("etc/passwd"))?,
            group: read_bounded(root.join("etc/group"))?,
        })
    }

    /// Resolves `user[:group]`; empty is root.
    pub(crate) fn resolve(&self, spec: &str) -> Result<Account, AccountError> {
        let (user, group) = spec.split_once(':').unwrap_or((spec, ""));
        let entry = self.find_user(user)?;
        let (uid, mut gid, home) = match (&entry, parse_id(user)?) {
            (Some(entry), _) => (entry.uid, entry.gid, entry.home),
            (None, Some(uid)) => (uid, 0, DEFAULT_HOME),
            (None, None) => (0, 0, DEFAULT_HOME),
        };
        let mut groups = Vec::new();
        if group.is_empty() {
            groups = entry.map(|entry| self.groups_of(entry.name)).unwrap_or_default();
        } else {
            gid = self.find_group(group)?;
        }
        let home = if home.is_empty() { DEFAULT_HOME } else { home };
        Ok(Account { credentials: Credentials { uid, gid, groups }, home: home.to_owned() })
    }

    fn find_user(&self, user: &str) -> Result<Option<PasswdEntry<'_>>, AccountError> {
        let wanted = if user.is_empty() { Some(0) } else { parse_id(user)? };
        let found = self.passwd.lines().filter_map(parse_passwd).find(|entry| match wanted {
            Some(uid) => entry.uid == uid,
            None => entry.name == user,
        });
        if found.is_none() && wanted.is_none() {
            return Err(AccountError::UnknownUser { name: user.to_owned() });
        }
        Ok(found)
    }

    fn find_group(&self, group: &str) -> Result<u32, AccountError> {
        if let Some(gid) = parse_id(group)? {
            return Ok(gid);
        }
        self.group
            .lines()
            .filter_map(parse_group)
            .find(|entry| entry.name == group)
            .map(|entry| entry.gid)
            .ok_or_else(|| AccountError::UnknownGroup { name: group.to_owned() })
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        self.group
            .lines()
            .filter_map(parse_group)
            .filter(|entry| entry.members.split(',').any(|member| member.trim() == user))
            .map(|entry| entry.gid)
            .take(MAX_GROUPS)
            .collect()
    }
}

/// The id that a string of digits is; none for a name.
fn parse_id(text: &str) -> Result<Option<u32>, AccountError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(AccountError::IdOutOfRange { found: text.to_owned() }),
    }
}

fn parse_passwd(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(PasswdEntry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
}

fn parse_group(line: &str) -> Option<GroupEntry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
}

fn read_bounded(path: PathBuf) -> Result<String, AccountError> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(source) => return Err(AccountError::Read { path, source }),
    };
    match file.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() <= MAX_BYTES => {}
        Ok(_) => return Err(AccountError::NotUsable { path }),
        Err(source) => return Err(AccountError::Read { path, source }),
    }
    let mut bytes = Vec::new();
    match file.take(MAX_BYTES).read_to_end(&mut bytes) {
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(source) => Err(AccountError::Read { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
# comment:x:5:5::/c:/bin/sh

broken line
short:x:7
app:x:1000:1001:App:/home/app:/bin/sh
42:x:77:78::/number:/bin/sh
nohome:x:50:51
second:x:1000:9::/second:/bin/sh
";
    const GROUP: &str = "\
root:x:0:
app:x:1001:
audio:x:29:app,other
video:x:44:other,app
bad:x:notanumber:app
wheel:x:10:root
";

    fn resolve(spec: &str) -> Result<Account, AccountError> {
        Accounts { passwd: PASSWD.into(), group: GROUP.into() }.resolve(spec)
    }

    fn account(uid: u32, gid: u32, groups: &[u32], home: &str) -> Account {
        let credentials = Credentials { uid, gid, groups: groups.to_vec() };
        Account { credentials, home: home.into() }
    }

    #[test]
    fn users_resolve_as_docker_resolves_them() {
        let cases = [
            ("", account(0, 0, &[10], "/root")),
            ("root", account(0, 0, &[10], "/root")),
            ("app", account(1000, 1001, &[29, 44], "/home/app")),
            ("1000", account(1000, 1001, &[29, 44], "/home/app")),
            ("app:", account(1000, 1001, &[29, 44], "/home/app")),
            ("app:video", account(1000, 44, &[], "/home/app")),
            ("app:4242", account(1000, 4242, &[], "/home/app")),
            ("4242", account(4242, 0, &[], "/")),
            ("4242:video", account(4242, 44, &[], "/")),
            (":video", account(0, 44, &[], "/root")),
            // A number is an id, even where an account has it as its name.
            ("42", account(42, 0, &[], "/")),
            ("nohome", account(50, 51, &[], "/")),
            ("2147483647", account(2_147_483_647, 0, &[], "/")),
        ];
        for (spec, expected) in cases {
            assert_eq!(resolve(spec).unwrap(), expected, "{spec}");
        }
    }

    #[test]
    fn what_has_no_entry_is_refused_by_name() {
        let cases = [
            ("ghost", "user `ghost`"),
            ("comment", "user `comment`"),
            ("# comment", "user `# comment`"),
            ("short", "user `short`"),
            ("app:ghost", "group `ghost`"),
            ("app:bad", "group `bad`"),
            ("-1", "user `-1`"),
            ("2147483648", "id `2147483648`"),
            ("app:99999999999999999999", "id `99999999999999999999`"),
        ];
        for (spec, expected) in cases {
            let message = resolve(spec).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{spec}: {message}");
        }
    }

    #[test]
    fn an_empty_root_has_root_and_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let accounts = Accounts::read(directory.path()).unwrap();
        assert_eq!(accounts.resolve("").unwrap(), account(0, 0, &[], "/"));
        assert_eq!(accounts.resolve("7:8").unwrap(), account(7, 8, &[], "/"));
        accounts.resolve("root").unwrap_err();
    }

    #[test]
    fn hostile_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let passwd = directory.path().join("etc/passwd");
        std::fs::create_dir_all(&passwd).unwrap();
        assert!(matches!(Accounts::read(directory.path()), Err(AccountError::NotUsable { .. })));
        std::fs::remove_dir(&passwd).unwrap();
        std::fs::File::create(&passwd).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(Accounts::read(directory.path()), Err(AccountError::NotUsable { .. })));
        // No writer ever comes: opening must not wait for one.
        std::fs::remove_file(&passwd).unwrap();
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(Accounts::read(directory.path()), Err(AccountError::NotUsable { .. })));
        std::fs::remove_file(&passwd).unwrap();
        std::fs::write(&passwd, b"\xff\xfe:x:1:1\nok:x:3:4::/h:\n").unwrap();
        let accounts = Accounts::read(directory.path()).unwrap();
        assert_eq!(accounts.resolve("ok").unwrap(), account(3, 4, &[], "/h"));
    }
}
