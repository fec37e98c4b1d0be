//! Writes the files for the resolution of names: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.
//!
//! Files of the image are replaced, as container engines do. A symbolic link is replaced by a file,
//! and its target stays as it is.
//!
//! The files must be written before the mounts of the config are made. A share can be mounted on
//! `/etc`, and nothing may be written to a directory of the host. If `/etc` is not a directory,
//! nothing is written, and the caller logs the error.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use a3s_box_proto::control::NameServers;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Address of the host name in a guest without a network, by the convention of Debian.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));

/// Name of a new file until it is renamed to its final name.
const NEW: &str = ".a3s-box-names";

/// A file cannot be written. `file` is empty if `/etc` itself cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `/etc/{file}`")]
pub(crate) struct NameError {
    file: &'static str,
    source: io::Error,
}

/// Writes the files to `etc` below `root`. Without `name_servers`, `resolv.conf` of the image
/// stays.
///
/// Stops at the first error. Files that were written until then stay.
///
/// `addresses` are those of the guest in its network.
pub(crate) fn write(
    root: &Path,
    hostname: &str,
    addresses: &[IpAddr],
    name_servers: Option<&NameServers>,
) -> Result<(), NameError> {
    let etc = open_etc(root).map_err(|source| NameError { file: "", source })?;
    let mut files =
        vec![("hosts", hosts(hostname, addresses)), ("hostname", format!("{hostname}\n"))];
    files.extend(name_servers.map(|servers| ("resolv.conf", resolv_conf(servers))));
    for (file, text) in files {
        replace(etc.as_fd(), file, &text).map_err(|source| NameError { file, source })?;
    }
    Ok(())
}

/// Opens `etc` below `root`, and creates it if it is missing. Follows no symbolic link.
fn open_etc(root: &Path) -> io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = open(root, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let etc = match openat(&root, "etc", flags, Mode::empty()) {
        Err(Errno::ENOENT) => {
            mkdirat(&root, "etc", Mode::from_bits_truncate(0o755))?;
            openat(&root, "etc", flags, Mode::empty())?
        }
        etc => etc?,
    };
    Ok(etc.into())
}

/// Writes a new file and renames it to `name`. `renameat(2)` replaces a symbolic link itself and
/// does not follow it.
fn replace(etc: BorrowedFd<'_>, name: &str, text: &str) -> io::Result<()> {
    // An image can contain the temporary name. It is removed, so that O_EXCL can refuse any file
    // that is not new.
    match unlinkat(etc, NEW, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(etc, NEW, flags, Mode::from_bits_truncate(0o644))?);
    file.write_all(text.as_bytes())?;
    Ok(renameat(etc, NEW, etc, name)?)
}

/// Returns the content of `/etc/hosts`.
fn hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let addresses = if addresses.is_empty() { &[NO_ADDRESS] } else { addresses };
    // The canonical name comes first, then its alias (hosts(5)).
    let names = match hostname.split_once('.') {
        Some((first, _)) => format!("{hostname} {first}"),
        None => hostname.to_owned(),
    };
    let own: String = addresses.iter().map(|own| format!("{own}\t{names}\n")).collect();
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}")
}

fn read_address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

/// Returns the content of `/etc/resolv.conf`. Without name servers it is a comment. The C library
/// then asks 127.0.0.1, where the guest has no server (`resolv.conf(5)`).
fn resolv_conf(servers: &NameServers) -> String {
    // The shim sends no address of another length.
    let line = |address: &Vec<u8>| Some(format!("nameserver {}\n", read_address(address)?));
    match servers.addresses.is_empty() {
        true => "# This box has no name servers.\n".to_owned(),
        false => servers.addresses.iter().filter_map(line).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn servers(addresses: &[&[u8]]) -> NameServers {
        NameServers { addresses: addresses.iter().map(|address| address.to_vec()).collect() }
    }

    /// The address `2001:db8::35`.
    const V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x35];

    #[test]
    fn writes_the_files_if_the_image_has_none() {
        let root = tempfile::tempdir().unwrap();
        let addresses = ["10.0.2.15", "fdfb:61f7:afae::15"].map(|text| text.parse().unwrap());
        write(root.path(), "web.example", &addresses, Some(&servers(&[&[1, 1, 1, 1], &V6])))
            .unwrap();
        let read = |name| fs::read_to_string(root.path().join("etc").join(name)).unwrap();
        assert_eq!(read("hostname"), "web.example\n");
        let own = "\n10.0.2.15\tweb.example web\nfdfb:61f7:afae::15\tweb.example web\n";
        assert!(read("hosts").ends_with(own), "{}", read("hosts"));
        assert_eq!(read("resolv.conf"), "nameserver 1.1.1.1\nnameserver 2001:db8::35\n");
        let mode = fs::metadata(root.path().join("etc/hosts")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 3);
    }

    #[test]
    fn replaces_a_symbolic_link_and_does_not_follow_it() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        fs::create_dir(&etc).unwrap();
        let target = root.path().join("target");
        fs::write(&target, "mine").unwrap();
        for name in ["hosts", "hostname", "resolv.conf", NEW] {
            symlink(&target, etc.join(name)).unwrap();
        }
        write(root.path(), "a", &[], Some(&servers(&[]))).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
        assert!(fs::symlink_metadata(etc.join("resolv.conf")).unwrap().is_file());
        assert!(fs::read_to_string(etc.join("hosts")).unwrap().ends_with("127.0.1.1\ta\n"));
    }

    #[test]
    fn reports_and_keeps_an_etc_or_file_that_is_something_else() {
        let root = tempfile::tempdir().unwrap();
        let other = root.path().join("other");
        fs::create_dir(&other).unwrap();
        symlink("other", root.path().join("etc")).unwrap();
        assert!(write(root.path(), "a", &[], None).is_err());
        assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
        fs::remove_file(root.path().join("etc")).unwrap();
        fs::create_dir_all(root.path().join("etc/hostname")).unwrap();
        let error = write(root.path(), "a", &[], None).unwrap_err();
        assert_eq!(error.to_string(), "cannot write `/etc/hostname`");
    }

    #[test]
    fn keeps_resolv_conf_of_the_image_without_name_servers() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/resolv.conf"), "mine").unwrap();
        write(root.path(), "a", &[], None).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("etc/resolv.conf")).unwrap(), "mine");
    }
}
