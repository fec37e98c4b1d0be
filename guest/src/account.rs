//! Resolves `user[:group]` in `/etc/passwd` and `/etc/group` of the guest, by the rules of Docker:
//!
//! - A number is always an id and needs no entry. A name needs an entry.
//! - Without a group, the group is the one in the user's entry, or 0 if there is no entry. The
//!   supplementary groups are the groups that have the user as a member.
//! - With a group, there are no supplementary groups.
//!
//! The files come from the image and can be hostile. Their size is limited, and a malformed line is
//! skipped.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::syscall::Credentials;

/// Maximum size of a file in bytes, enough for about ten thousand accounts.
const MAX_BYTES: u64 = 1024 * 1024;

/// Maximum id that Docker accepts.
const MAX_ID: u32 = (1 << 31) - 1;

/// Maximum number of supplementary groups of a process (`NGROUPS_MAX`). `setgroups(2)` refuses a
/// longer list.
const MAX_GROUPS: usize = 65_536;

/// Home directory of a user without an entry, or with an entry that has none.
const DEFAULT_HOME: &str = "/";

/// The reason why a user or group cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    /// A file exists but cannot be read.
    #[error("cannot read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// The path leads to something other than a regular file, or the file is too large.
    #[error("`{path}`: expected a regular file of at most {MAX_BYTES} bytes", path = path.display())]
    NotUsable {
        /// The file.
        path: PathBuf,
    },
    /// `/etc/passwd` has no entry with this name.
    #[error("user `{name}`: found no entry in `/etc/passwd`, expected one or a numeric id")]
    UnknownUser {
        /// The name as the config has it.
        name: String,
    },
    /// `/etc/group` has no entry with this name.
    #[error("group `{name}`: found no entry in `/etc/group`, expected one or a numeric id")]
    UnknownGroup {
        /// The name as the config has it.
        name: String,
    },
    /// A number is above [`MAX_ID`].
    #[error("id `{found}`: expected at most {MAX_ID}")]
    IdOutOfRange {
        /// The number as the config has it.
        found: String,
    },
}

impl AccountError {
    /// Returns whether the guest has no such user or group.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(
            self,
            Self::UnknownUser { .. } | Self::UnknownGroup { .. } | Self::IdOutOfRange { .. }
        )
    }
}

/// A resolved user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// Ids of the user and its groups.
    pub(crate) credentials: Credentials,
    /// Home directory.
    pub(crate) home: String,
}

/// The content of `/etc/passwd` and `/etc/group`.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

/// The fields of a line of `/etc/passwd` that are used here (`passwd(5)`).
struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// The fields of a line of `/etc/group` that are used here (`group(5)`).
struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    /// User names, separated by commas.
    members: &'a str,
}

impl Accounts {
    /// Reads the files below `root`. A missing file counts as empty, because an image need not have
    /// any.
    pub(crate) fn read(root: &Path) -> Result<Self, AccountError> {
        Ok(Self {
            passwd: read_bounded(root.join("etc/passwd"))?,
            group: read_bounded(root.join("etc/group"))?,
        })
    }

    /// Resolves `user[:group]`. An empty user means root.
    pub(crate) fn resolve(&self, spec: &str) -> Result<Account, AccountError> {
        let (user, group) = spec.split_once(':').unwrap_or((spec, ""));
        let entry = self.find_user(user)?;
        let (uid, mut gid, home) = match (&entry, parse_id(user)?) {
            (Some(entry), _) => (entry.uid, entry.gid, entry.home),
            (None, Some(uid)) => (uid, 0, DEFAULT_HOME),
            // `find_user` refuses an unknown name, so the user is empty.
            (None, None) => (0, 0, DEFAULT_HOME),
        };
        let mut groups = Vec::new();
        // A user that is only an id, without an entry, has no name that could be a member of
        // groups.
        if group.is_empty() {
            groups = entry.map(|entry| self.groups_of(entry.name)).unwrap_or_default();
        } else {
            gid = self.find_group(group)?;
        }
        let home = if home.is_empty() { DEFAULT_HOME } else { home };
        Ok(Account { credentials: Credentials { uid, gid, groups }, home: home.to_owned() })
    }

    /// Returns the first entry of a user. Returns `None` for an id without an entry.
    fn find_user(&self, user: &str) -> Result<Option<PasswdEntry<'_>>, AccountError> {
        // An empty user is looked up as id 0, so that it gets the home directory and groups of
        // root.
        let wanted = if user.is_empty() { Some(0) } else { parse_id(user)? };
        let found = self.passwd.lines().filter_map(parse_passwd).find(|entry| match wanted {
            // An entry whose name is this number does not count: a number is always an id.
            Some(uid) => entry.uid == uid,
            None => entry.name == user,
        });
        if found.is_none() && wanted.is_none() {
            return Err(AccountError::UnknownUser { name: user.to_owned() });
        }
        Ok(found)
    }

    /// Returns the id of a group, which is a number or the name of an entry.
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

    /// Returns the ids of all groups that have this user as a member. Members are names, never ids.
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

/// Parses an id. Returns `None` for a name, which is any text that is not all digits.
fn parse_id(text: &str) -> Result<Option<u32>, AccountError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(AccountError::IdOutOfRange { found: text.to_owned() }),
    }
}

/// Parses `name:password:uid:gid:comment:home:shell`. Fields after the group may be missing.
fn parse_passwd(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.trim().split(':');
    // A comment can contain colons and look like an entry.
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    // `nth(1)` skips one field: the password here, and the comment below.
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(PasswdEntry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
}

/// Parses `name:password:gid:members`. The members may be missing.
fn parse_group(line: &str) -> Option<GroupEntry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
}

/// Reads a regular file of at most [`MAX_BYTES`]. Returns an empty text if it does not exist.
fn read_bounded(path: PathBuf) -> Result<String, AccountError> {
    // O_NONBLOCK, because the open of a FIFO would wait for a writer.
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
    // The limit applies to the read as well, because the file may grow after the check. Bytes that
    // are not UTF-8 are replaced, so that they make only their own line unusable.
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
    fn resolves_users_and_groups_as_docker_does() {
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
            // A number is an id, even if it is the name of an entry.
            ("42", account(42, 0, &[], "/")),
            ("nohome", account(50, 51, &[], "/")),
            ("2147483647", account(2_147_483_647, 0, &[], "/")),
        ];
        for (spec, expected) in cases {
            assert_eq!(resolve(spec).unwrap(), expected, "{spec}");
        }
    }

    #[test]
    fn names_the_user_group_or_id_that_cannot_be_resolved() {
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
    fn resolves_root_and_numbers_without_the_files() {
        let directory = tempfile::tempdir().unwrap();
        let accounts = Accounts::read(directory.path()).unwrap();
        assert_eq!(accounts.resolve("").unwrap(), account(0, 0, &[], "/"));
        assert_eq!(accounts.resolve("7:8").unwrap(), account(7, 8, &[], "/"));
        accounts.resolve("root").unwrap_err();
    }

    #[test]
    fn refuses_a_directory_a_fifo_or_a_large_file_and_skips_malformed_lines() {
        let directory = tempfile::tempdir().unwrap();
        let passwd = directory.path().join("etc/passwd");
        std::fs::create_dir_all(&passwd).unwrap();
        assert!(matches!(Accounts::read(directory.path()), Err(AccountError::NotUsable { .. })));
        std::fs::remove_dir(&passwd).unwrap();
        std::fs::File::create(&passwd).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(Accounts::read(directory.path()), Err(AccountError::NotUsable { .. })));
        // The FIFO never gets a writer, so the open must not wait for one.
        std::fs::remove_file(&passwd).unwrap();
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(Accounts::read(directory.path()), Err(AccountError::NotUsable { .. })));
        std::fs::remove_file(&passwd).unwrap();
        std::fs::write(&passwd, b"\xff\xfe:x:1:1\nok:x:3:4::/h:\n").unwrap();
        let accounts = Accounts::read(directory.path()).unwrap();
        assert_eq!(accounts.resolve("ok").unwrap(), account(3, 4, &[], "/h"));
    }
}
