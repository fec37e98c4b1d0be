//! Inodes: the compact form of 32 bytes, and the extended one of 64.

use crate::format::field;

/// Sizes of both forms (`struct erofs_inode_compact` and `struct erofs_inode_extended`).
pub(crate) const COMPACT_BYTES: usize = 32;
pub(crate) const EXTENDED_BYTES: usize = 64;

/// Where the data of an inode are (`EROFS_INODE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// In blocks that follow each other.
    Plain,
    /// In blocks that follow each other, but the last part is behind the inode.
    Inline,
    /// In chunks, whose places are behind the inode.
    Chunks,
}

/// The kind of an inode: its type of `S_IFMT`, and its type in directories (`EROFS_FT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
    Symlink,
}

impl Kind {
    const ALL: [(Self, u16, u8); 7] = [
        (Self::File, 0o10_0000, 1),
        (Self::Directory, 0o4_0000, 2),
        (Self::CharDevice, 0o2_0000, 3),
        (Self::BlockDevice, 0o6_0000, 4),
        (Self::Fifo, 0o1_0000, 5),
        (Self::Socket, 0o14_0000, 6),
        (Self::Symlink, 0o12_0000, 7),
    ];

    /// Returns the type that directories store.
    pub(crate) fn in_directory(self) -> u8 {
        Self::ALL.into_iter().find(|(kind, ..)| *kind == self).map_or(0, |(.., number)| number)
    }

    fn mode(self) -> u16 {
        Self::ALL.into_iter().find(|(kind, ..)| *kind == self).map_or(0, |(_, mode, _)| mode)
    }

    fn of_mode(mode: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, bits, _)| mode & 0o17_0000 == *bits).map(|(kind, ..)| kind)
    }
}

/// The form of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Compact,
    Extended,
}

impl Form {
    /// Returns the size of the form in bytes.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Compact => COMPACT_BYTES,
            Self::Extended => EXTENDED_BYTES,
        }
    }
}

/// An inode without its extended attributes and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskInode {
    pub(crate) kind: Kind,
    pub(crate) layout: Layout,
    /// Bytes of the extended attributes, with their header (`i_xattr_icount` in its unit).
    pub(crate) xattr_bytes: usize,
    /// Permissions, set-id bits, sticky bit.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Time in seconds and nanoseconds, or none for that of the superblock.
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) links: u32,
    pub(crate) size_bytes: u64,
    /// First block, device number or format of chunks (`i_u`).
    pub(crate) value: u32,
    /// The number that 32-bit processes see (`i_ino`). Linux ignores it.
    pub(crate) ino: u32,
}

impl DiskInode {
    /// Returns the smaller form that can represent the inode.
    pub(crate) fn form(&self) -> Form {
        let is_small = |number: u32| u16::try_from(number).is_ok();
        let is_compact = self.mtime.is_none()
            && is_small(self.uid)
            && is_small(self.gid)
            && is_small(self.links)
            && u32::try_from(self.size_bytes).is_ok();
        if is_compact { Form::Compact } else { Form::Extended }
    }

    /// Appends the inode in its smaller form. `epoch` is the time of the superblock.
    pub(crate) fn encode(&self, epoch: (i64, u32), out: &mut Vec<u8>) {
        let start = out.len();
        let form = self.form();
        out.resize(start + form.bytes(), 0);
        let bytes = &mut out[start..];
        let mut set = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let layout = match self.layout {
            Layout::Plain => 0,
            Layout::Inline => 2,
            Layout::Chunks => 4,
        };
        let xattrs = xattr_count(self.xattr_bytes);
        let mode = self.kind.mode() | self.mode;
        set(2, &xattrs.to_le_bytes());
        set(4, &mode.to_le_bytes());
        set(16, &self.value.to_le_bytes());
        set(20, &self.ino.to_le_bytes());
        // `form` has checked that the lower halves are all of each number.
        match form {
            Form::Compact => {
                set(0, &u16::to_le_bytes(layout << 1));
                set(6, &self.links.to_le_bytes()[..2]);
                set(8, &self.size_bytes.to_le_bytes()[..4]);
                set(24, &self.uid.to_le_bytes()[..2]);
                set(26, &self.gid.to_le_bytes()[..2]);
            }
            Form::Extended => {
                let (seconds, nanoseconds) = self.mtime.unwrap_or(epoch);
                set(0, &u16::to_le_bytes(layout << 1 | 1));
                set(8, &self.size_bytes.to_le_bytes());
                set(24, &self.uid.to_le_bytes());
                set(28, &self.gid.to_le_bytes());
                set(32, &seconds.to_le_bytes());
                set(40, &nanoseconds.to_le_bytes());
                set(44, &self.links.to_le_bytes());
            }
        }
    }

    /// Returns the form of the inode that begins with `bytes`, of which there are at least two, if
    /// this crate knows its format.
    pub(crate) fn form_of(bytes: &[u8]) -> Option<Form> {
        match u16::from_le_bytes(field(bytes, 0)) {
            0 | 4 | 8 => Some(Form::Compact),
            1 | 5 | 9 => Some(Form::Extended),
            _ => None,
        }
    }

    /// Reads an inode that has the size of its form, if its format and type are known.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let form = Self::form_of(bytes)?;
        let layout = match bytes[0] >> 1 {
            0 => Layout::Plain,
            2 => Layout::Inline,
            _ => Layout::Chunks,
        };
        let mode = u16::from_le_bytes(field(bytes, 4));
        let short = |at| u32::from(u16::from_le_bytes(field(bytes, at)));
        let long = |at| u32::from_le_bytes(field(bytes, at));
        let of_form = |compact, extended| match form {
            Form::Compact => short(compact),
            Form::Extended => long(extended),
        };
        let (mtime, size_bytes) = match form {
            Form::Compact => (None, u64::from(long(8))),
            Form::Extended => (
                Some((i64::from_le_bytes(field(bytes, 32)), long(40))),
                u64::from_le_bytes(field(bytes, 8)),
            ),
        };
        Some(Self {
            kind: Kind::of_mode(mode)?,
            layout,
            xattr_bytes: xattr_bytes(u16::from_le_bytes(field(bytes, 2))),
            mode: mode & 0o7777,
            uid: of_form(24, 24),
            gid: of_form(26, 28),
            mtime,
            links: of_form(6, 44),
            size_bytes,
            value: long(16),
            ino: long(20),
        })
    }
}

/// Returns `i_xattr_icount`: the header counts as one, and each 4 bytes behind it as one.
fn xattr_count(bytes: usize) -> u16 {
    let units = bytes.checked_sub(super::XATTRS_HEADER_BYTES).map_or(0, |rest| rest / 4 + 1);
    // The tree has checked that the count has 16 bits.
    u16::try_from(units).unwrap_or(u16::MAX)
}

/// Returns the bytes that `i_xattr_icount` stands for.
fn xattr_bytes(count: u16) -> usize {
    let units = count.checked_sub(1).map(usize::from);
    units.map_or(0, |units| super::XATTRS_HEADER_BYTES + 4 * units)
}

/// Returns a device number as Linux stores it (`new_encode_dev` of `include/linux/kdev_t.h`).
pub(crate) fn encode_device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Returns the major and minor number of a stored device number.
pub(crate) fn decode_device_number(number: u32) -> (u32, u32) {
    ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}
