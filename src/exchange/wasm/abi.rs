//! What a module and its host have agreed on, as numbers: `docs/exchanger-abi.md` in code. The structures are those of
//! the Arrow C Data Interface as a C compiler lays them out for wasm32: pointers of four bytes, lengths of eight.

/// What `mallard_abi_version` answers.
pub(super) const VERSION: i32 = 1;

/// What the functions of a module answer.
pub(super) const NOTHING: i32 = 0;
pub(super) const ROWS: i32 = 1;

/// Where the members of `struct ArrowSchema` are.
pub(super) mod schema {
    pub(crate) const FORMAT: usize = 0;
    pub(crate) const NAME: usize = 4;
    pub(crate) const METADATA: usize = 8;
    pub(crate) const FLAGS: usize = 16;
    pub(crate) const N_CHILDREN: usize = 24;
    pub(crate) const CHILDREN: usize = 32;
    pub(crate) const DICTIONARY: usize = 36;
    pub(crate) const SIZE: usize = 48;

    /// The bits of `flags`.
    pub(crate) const DICTIONARY_ORDERED: i64 = 1;
    pub(crate) const NULLABLE: i64 = 2;
    pub(crate) const MAP_KEYS_SORTED: i64 = 4;
}

/// Where the members of `struct ArrowArray` are.
pub(super) mod array {
    pub(crate) const LENGTH: usize = 0;
    pub(crate) const NULL_COUNT: usize = 8;
    pub(crate) const OFFSET: usize = 16;
    pub(crate) const N_BUFFERS: usize = 24;
    pub(crate) const N_CHILDREN: usize = 32;
    pub(crate) const BUFFERS: usize = 40;
    pub(crate) const CHILDREN: usize = 44;
    pub(crate) const DICTIONARY: usize = 48;
    pub(crate) const SIZE: usize = 64;
}

/// Which of `count` structures of `size` bytes, the first at `first`, is at `at`.
pub(super) fn position(at: u32, first: u32, size: usize, count: usize) -> Option<usize> {
    let offset = at.checked_sub(first)? as usize;
    Some(offset / size).filter(|index| offset.is_multiple_of(size) && *index < count)
}

/// What a module's memory holds, read with bounds. Nothing in it is trusted.
#[derive(Clone, Copy)]
pub(super) struct Memory<'a>(pub(super) &'a [u8]);

impl<'a> Memory<'a> {
    pub(super) fn bytes(self, at: u32, len: usize) -> Result<&'a [u8], String> {
        let at = at as usize;
        let bytes = at.checked_add(len).and_then(|end| self.0.get(at..end));
        bytes.ok_or_else(|| format!("{len} bytes at {at:#x} are outside of its memory of {} bytes", self.0.len()))
    }

    fn fixed<const N: usize>(self, at: u32, member: usize) -> Result<[u8; N], String> {
        let at = u32::try_from(member).ok().and_then(|member| at.checked_add(member));
        let bytes = self.bytes(at.ok_or("an address beyond 4 GiB is outside of its memory")?, N)?;
        Ok(bytes.try_into().expect("bytes() answers as many as it is asked for"))
    }

    pub(super) fn u32(self, at: u32, member: usize) -> Result<u32, String> {
        self.fixed(at, member).map(u32::from_le_bytes)
    }

    pub(super) fn i64(self, at: u32, member: usize) -> Result<i64, String> {
        self.fixed(at, member).map(i64::from_le_bytes)
    }

    /// The bytes before the first zero, which must come within `limit` bytes.
    pub(super) fn text(self, at: u32, limit: usize) -> Result<&'a str, String> {
        let rest = self.0.get(at as usize..).ok_or_else(|| format!("a text at {at:#x} is outside of its memory"))?;
        let rest = &rest[..rest.len().min(limit)];
        let end = rest.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| format!("the text at {at:#x} has no end within {limit} bytes"))?;
        std::str::from_utf8(&rest[..end]).map_err(|_| format!("the text at {at:#x} is not UTF-8"))
    }
}
