//! Images as data. The generator makes them, the model applies them, `archive` writes them as tar
//! archives, and `Display` shows them in the message of a failure.

use std::collections::BTreeMap;
use std::fmt;

use tar::{Builder, EntryType, Header};

/// The type of an entry, with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File(String),
    Symlink(String),
    HardLink(String),
    Fifo,
    Device,
    /// A whiteout of the path.
    Whiteout,
    /// An opaque whiteout of the directory with this path.
    Opaque,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970, and nanoseconds that are added to them.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Names that are joined by slashes. The path of the root is empty.
    pub(crate) path: String,
    pub(crate) kind: Kind,
    pub(crate) metadata: Metadata,
}

/// The layers of an image, the bottom first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image(pub(crate) Vec<Vec<Entry>>);

/// Splits a path into its directory and the name in it.
pub(crate) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

pub(crate) fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// Writes a layer as an uncompressed archive.
pub(crate) fn archive(layer: &[Entry]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    layer.iter().for_each(|entry| entry.write(&mut tar));
    tar.into_inner().unwrap()
}

impl Entry {
    /// Returns the name that the entry has in an archive.
    fn name(&self) -> String {
        let (directory, name) = split(&self.path);
        match &self.kind {
            Kind::Directory if self.path.is_empty() => "./".to_owned(),
            Kind::Whiteout => join(directory, &format!(".wh.{name}")),
            Kind::Opaque => join(&self.path, ".wh..wh..opq"),
            _ => self.path.clone(),
        }
    }

    fn write(&self, tar: &mut Builder<Vec<u8>>) {
        let (kind, link, body) = match &self.kind {
            Kind::Directory => (EntryType::Directory, "", ""),
            Kind::File(content) => (EntryType::Regular, "", content.as_str()),
            Kind::Symlink(target) => (EntryType::Symlink, target.as_str(), ""),
            Kind::HardLink(target) => (EntryType::Link, target.as_str(), ""),
            Kind::Fifo => (EntryType::Fifo, "", ""),
            Kind::Device => (EntryType::Char, "", ""),
            Kind::Whiteout | Kind::Opaque => (EntryType::Regular, "", ""),
        };
        let Metadata { mode, uid, gid, mtime: (seconds, nanoseconds), xattrs } = &self.metadata;
        let mut pax: Vec<(String, String)> = xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone()))
            .collect();
        // The field of the header has whole seconds since 1970 only.
        if *seconds < 0 || *nanoseconds > 0 {
            pax.push(("mtime".to_owned(), format!("{seconds}.{nanoseconds:09}")));
        }
        tar.append_pax_extensions(pax.iter().map(|(key, value)| (key.as_str(), value.as_bytes())))
            .unwrap();
        let (mut header, name) = (Header::new_ustar(), self.name());
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(*mode);
        header.set_uid((*uid).into());
        header.set_gid((*gid).into());
        header.set_mtime(u64::try_from(*seconds).unwrap_or_default());
        header.set_size(body.len() as u64);
        header.set_cksum();
        tar.append(&header, body.as_bytes()).unwrap();
    }
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, uid, gid, mtime: (seconds, nanoseconds), xattrs } = self;
        write!(f, "{mode:o} {uid}:{gid} {seconds}.{nanoseconds:09}")?;
        xattrs.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, metadata) = (self.name(), &self.metadata);
        match &self.kind {
            Kind::Directory => write!(f, "dir       {name}  ({metadata})"),
            Kind::File(content) => write!(f, "file      {name}  `{content}` ({metadata})"),
            Kind::Symlink(target) => write!(f, "symlink   {name} -> {target}  ({metadata})"),
            Kind::HardLink(target) => write!(f, "hard link {name} => {target}"),
            Kind::Fifo => write!(f, "fifo      {name}  ({metadata})"),
            Kind::Device => write!(f, "device    {name}"),
            Kind::Whiteout | Kind::Opaque => write!(f, "whiteout  {name}"),
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, layer) in self.0.iter().enumerate() {
            let again = self.0[..number].iter().position(|earlier| earlier == layer);
            match again {
                Some(earlier) => writeln!(f, "  layer {number}: layer {earlier} again")?,
                None => writeln!(f, "  layer {number}: {} entries", layer.len())?,
            }
            if again.is_none() {
                layer.iter().try_for_each(|entry| writeln!(f, "    {entry}"))?;
            }
        }
        Ok(())
    }
}
