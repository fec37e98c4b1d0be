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
    // One table serves both directions, so the writer and the reader cannot disagree.
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
        // `ALL` has every kind, so the 0 is never returned.
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
        // A compact inode has 16 bits for owner, group and link count, and 32 bits for the size. It
        // has no time of its own.
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
        // The numbers 1 and 3 are the compressed layouts, which this crate does not write.
        let layout = match self.layout {
            Layout::Plain => 0,
            Layout::Inline => 2,
            Layout::Chunks => 4,
        };
        let xattrs = xattr_count(self.xattr_bytes);
        let mode = self.kind.mode() | self.mode;
        // These four fields have the same place in both forms. Fields that are not set are
        // reserved, and stay zero.
        set(2, &xattrs.to_le_bytes());
        set(4, &mode.to_le_bytes());
        set(16, &self.value.to_le_bytes());
        set(20, &self.ino.to_le_bytes());
        // The lower halves suffice for a compact inode, because `form` has checked its numbers.
        // `i_format` at 0 has the form in bit 0 and the layout in bits 1 to 3.
        match form {
            Form::Compact => {
                set(0, &u16::to_le_bytes(layout << 1));
                set(6, &self.links.to_le_bytes()[..2]);
                set(8, &self.size_bytes.to_le_bytes()[..4]);
                set(24, &self.uid.to_le_bytes()[..2]);
                set(26, &self.gid.to_le_bytes()[..2]);
            }
            Form::Extended => {
                // An inode with the time of the superblock is extended if another field is too
                // large.
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

    /// Returns the form of the inode that begins with `bytes`, or none if its format is unknown.
    /// `bytes` has at least two bytes.
    pub(crate) fn form_of(bytes: &[u8]) -> Option<Form> {
        match u16::from_le_bytes(field(bytes, 0)) {
            // The layouts 0, 2 and 4 are shifted by one bit. Comparing all 16 bits also refuses
            // images that use the upper bits, whose meaning is unknown here.
            0 | 4 | 8 => Some(Form::Compact),
            1 | 5 | 9 => Some(Form::Extended),
            _ => None,
        }
    }

    /// Reads an inode, or returns none if its format or type is unknown. `bytes` has the size of
    /// the inode's form.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let form = Self::form_of(bytes)?;
        // `form_of` has accepted only numbers below 10, so they are in the first byte.
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

/// Returns `i_xattr_icount`, which counts the header as one unit and each 4 bytes behind it as one.
fn xattr_count(bytes: usize) -> u16 {
    // An inode without attributes has no header either, and its count is 0.
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
    // The lower 16 bits are a `dev_t` of 16 bits, as old kernels had it. So the minor number is
    // split around the major one.
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Returns the major and minor number of a stored device number.
pub(crate) fn decode_device_number(number: u32) -> (u32, u32) {
    ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}
