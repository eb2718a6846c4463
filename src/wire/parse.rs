//! The HTTP/2 body of a call -> FlightData, whose bodies are copied once, into aligned buffers.
//!
//! The standard path appends each DATA frame to a buffer, cuts messages out of it, and copies their bodies once more
//! because they are not aligned there. This parser knows where a body begins before its bytes come, and puts them where
//! arrays can stay. Buffers go back to their stream's pool when the last array in them is dropped, so that a long
//! stream touches the same memory again and again.
//!
//! It is one state machine without any waiting, fed with whatever pieces the network makes.

use std::{
    any::Any,
    sync::{Arc, Mutex, PoisonError},
};

use arrow_buffer::MutableBuffer;
use arrow_flight::{FlightData, FlightDescriptor};
use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use tonic::Status;

use super::frame::{BODY, DESCRIPTOR, HEADER, METADATA, PREFIX};

/// The most bytes of a message beside its body: schemas of thousands of columns stay far below.
const MAX_HEADER: usize = 16 * 1024 * 1024;

/// What is kept ready of a field that a peer announces but has not sent.
const AHEAD: usize = 64 * 1024;

/// The same of a body: messages of the usual sizes have their buffer at once, and the buffer of a longer one grows with the
/// bytes that have come.
const BODY_AHEAD: usize = 4 * 1024 * 1024;

/// Small messages are counted together: so many bytes of them are asked for at once.
const SMALL: usize = 64 * 1024;

/// What a small message costs beside its bytes.
const OVERHEAD: usize = 256;

/// Cuts gRPC messages of FlightData out of pieces of a body.
pub(super) struct Parser {
    state: State,
    /// Bytes of the message that are still to come.
    left: usize,
    message: FlightData,
    max_message: usize,
    pool: Pool,
    /// Whether messages wait for the right to be kept.
    asks: bool,
    /// What a message that has begun waits for.
    wanted: Option<Wanted>,
    held: Option<Held>,
    /// What small messages share, and how much of it is left.
    small: Option<(Held, usize)>,
}

/// Bytes that a stream asks for before it keeps a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A long message's own.
    Long(usize),
    /// Of a message of less than 64 KiB and of those behind it.
    Small(usize),
}

/// The right to keep a message's bytes, given back when the last array in them is dropped.
pub(super) type Held = Arc<dyn Any + Send + Sync>;

enum State {
    /// Between messages: so much of the next one's prefix is there.
    Prefix {
        bytes: [u8; PREFIX],
        have: usize,
    },
    /// Within a message, at a field's key.
    Key(Varint),
    Length {
        field: u32,
        length: Varint,
    },
    Field {
        field: u32,
        bytes: BytesMut,
        wanted: usize,
    },
    Body {
        buffer: MutableBuffer,
        wanted: usize,
    },
    /// A field that nobody here knows.
    Skip {
        left: usize,
    },
    SkipVarint(Varint),
}

#[derive(Default)]
struct Varint {
    value: u64,
    bits: u32,
}

impl Varint {
    /// The value, once the last byte is there.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, Status> {
        if self.bits > 63 || (self.bits == 63 && byte > 1) {
            return Err(malformed("a number of more than 64 bits"));
        }
        self.value |= u64::from(byte & 0x7f) << self.bits;
        self.bits += 7;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}

fn malformed(why: &str) -> Status {
    Status::invalid_argument(format!("the stream is not valid FlightData: {why}"))
}

impl Parser {
    pub(super) fn new(max_message: usize) -> Self {
        Self {
            state: State::Prefix { bytes: [0; PREFIX], have: 0 },
            left: 0,
            message: FlightData::default(),
            max_message,
            pool: Pool::default(),
            asks: false,
            wanted: None,
            held: None,
            small: None,
        }
    }

    /// One that does not go on with a message before it has been [`granted`](Self::granted) what it
    /// [`wants`](Self::wanted).
    pub(super) fn asking(max_message: usize) -> Self {
        Self { asks: true, ..Self::new(max_message) }
    }

    /// What the message that has begun waits for.
    pub(super) fn wanted(&self) -> Option<Wanted> {
        self.wanted
    }

    pub(super) fn granted(&mut self, held: Held) {
        if let Some(Wanted::Small(bytes)) = self.wanted {
            // The message that asked for it has taken its part.
            let left = bytes.saturating_sub(self.left + OVERHEAD);
            self.small = Some((held.clone(), left));
        }
        (self.wanted, self.held) = (None, Some(held));
    }

    /// Takes bytes off `piece` until a message is whole, the piece is empty, or something is wanted.
    pub(super) fn push(&mut self, piece: &mut Bytes) -> Result<Option<FlightData>, Status> {
        loop {
            if self.wanted.is_some() {
                return Ok(None);
            }
            if self.left == 0 && !matches!(self.state, State::Prefix { .. }) {
                if !matches!(self.state, State::Key(Varint { bits: 0, .. })) {
                    return Err(malformed("a message ends within a field"));
                }
                self.state = State::Prefix { bytes: [0; PREFIX], have: 0 };
                self.held = None;
                return Ok(Some(std::mem::take(&mut self.message)));
            }
            if piece.is_empty() {
                return Ok(None);
            }
            self.step(piece)?;
        }
    }

    /// Whether the body may end here.
    pub(super) fn between_messages(&self) -> bool {
        matches!(self.state, State::Prefix { have: 0, .. })
    }

    fn step(&mut self, piece: &mut Bytes) -> Result<(), Status> {
        let available = piece.len().min(self.left);
        match &mut self.state {
            State::Prefix { bytes, have } => {
                let taken = (PREFIX - *have).min(piece.len());
                piece.copy_to_slice(&mut bytes[*have..*have + taken]);
                *have += taken;
                if *have == PREFIX {
                    let [flag, length @ ..] = *bytes;
                    self.begin(flag, u32::from_be_bytes(length) as usize)?;
                }
            }
            State::Key(key) => {
                self.left -= 1;
                if let Some(key) = key.push(piece.get_u8())? {
                    self.field(key)?;
                }
            }
            State::Length { field, length } => {
                self.left -= 1;
                if let Some(length) = length.push(piece.get_u8())? {
                    let field = *field;
                    self.announced(field, length)?;
                }
            }
            State::Field { bytes, wanted, .. } => {
                let taken = (*wanted - bytes.len()).min(available);
                bytes.extend_from_slice(&piece.split_to(taken));
                self.left -= taken;
                self.finish_field()?;
            }
            State::Body { buffer, wanted } => {
                let taken = (*wanted - buffer.len()).min(available);
                grow(buffer, taken, *wanted);
                // The one copy of these bytes.
                buffer.extend_from_slice(&piece[..taken]);
                piece.advance(taken);
                self.left -= taken;
                self.finish_field()?;
            }
            State::Skip { left } => {
                let taken = (*left).min(available);
                piece.advance(taken);
                *left -= taken;
                self.left -= taken;
                self.finish_field()?;
            }
            State::SkipVarint(number) => {
                self.left -= 1;
                if number.push(piece.get_u8())?.is_some() {
                    self.state = State::Key(Varint::default());
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, flag: u8, length: usize) -> Result<(), Status> {
        if flag != 0 {
            // As tonic answers it: compressed calls go the standard way.
            return Err(Status::internal("a message is marked as compressed, but the call names no grpc-encoding"));
        }
        if length > self.max_message {
            let limit = self.max_message;
            return Err(Status::out_of_range(format!(
                "a message of {length} bytes is too large: the limit is {limit} bytes"
            )));
        }
        self.left = length;
        if self.asks {
            self.ask(length);
        }
        self.state = State::Key(Varint::default());
        Ok(())
    }

    fn ask(&mut self, length: usize) {
        if length >= SMALL {
            self.wanted = Some(Wanted::Long(length));
            return;
        }
        match &mut self.small {
            Some((held, left)) if *left >= length + OVERHEAD => {
                *left -= length + OVERHEAD;
                self.held = Some(held.clone());
            }
            // What is left of it stays counted as long as a message of it is kept.
            _ => (self.small, self.wanted) = (None, Some(Wanted::Small(SMALL + OVERHEAD))),
        }
    }

    fn field(&mut self, key: u64) -> Result<(), Status> {
        let key = u32::try_from(key).ok().filter(|key| key >> 3 > 0);
        let key = key.ok_or_else(|| malformed("there is no such field number"))?;
        let field = key >> 3;
        self.state = match key & 7 {
            0 => State::SkipVarint(Varint::default()),
            1 => State::Skip { left: 8 },
            2 => State::Length { field, length: Varint::default() },
            5 => State::Skip { left: 4 },
            other => return Err(malformed(&format!("wire type {other} of field {field}"))),
        };
        Ok(())
    }

    fn announced(&mut self, field: u32, length: u64) -> Result<(), Status> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.left);
        let wanted = length.ok_or_else(|| malformed("a field is longer than its message"))?;
        self.state = match field {
            BODY => State::Body { buffer: self.pool.take(wanted), wanted },
            DESCRIPTOR | HEADER | METADATA if wanted > MAX_HEADER => {
                // No key of the configuration would make room for it.
                return Err(malformed(&format!("a header of {wanted} bytes is more than {MAX_HEADER}")));
            }
            DESCRIPTOR | HEADER | METADATA => {
                State::Field { field, bytes: BytesMut::with_capacity(wanted.min(AHEAD)), wanted }
            }
            _ => State::Skip { left: wanted },
        };
        // Of a field of no bytes all are there.
        self.finish_field()
    }

    /// Takes over the field once all of it is there.
    fn finish_field(&mut self) -> Result<(), Status> {
        let whole = match &self.state {
            State::Field { bytes, wanted, .. } => bytes.len() == *wanted,
            State::Body { buffer, wanted } => buffer.len() == *wanted,
            State::Skip { left } => *left == 0,
            _ => false,
        };
        if !whole {
            return Ok(());
        }
        match std::mem::replace(&mut self.state, State::Key(Varint::default())) {
            State::Field { field: DESCRIPTOR, bytes, .. } => {
                // Protobuf merges what comes in two parts.
                let descriptor = self.message.flight_descriptor.get_or_insert_with(FlightDescriptor::default);
                descriptor.merge(bytes.freeze()).map_err(|_| malformed("its FlightDescriptor cannot be read"))?;
            }
            State::Field { field: HEADER, bytes, .. } => self.message.data_header = bytes.freeze(),
            State::Field { bytes, .. } => self.message.app_metadata = bytes.freeze(),
            State::Body { buffer, .. } => self.message.data_body = self.pool.lend(buffer, self.held.clone()),
            _ => {}
        }
        Ok(())
    }
}

// === Buffers ===

/// Buffers of one stream that are free again.
#[derive(Clone, Default)]
struct Pool(Arc<Mutex<Vec<MutableBuffer>>>);

/// What may wait at most: a stream has few messages in flight.
const WAITING: usize = 16 * 1024 * 1024;

/// Capacities are multiples of this, so that messages of nearly one size share buffers. What is smaller is allocated as it
/// is and not kept: a reader that gathers thousands of small messages would hold all that roundness.
const ROUND: usize = 64 * 1024;

/// A buffer that is so many times larger than it need be waits for a larger message.
const TOO_LARGE: usize = 4;

impl Pool {
    /// An empty buffer for so many bytes, aligned as Arrow recommends it. It has room for all of them where that is not
    /// much, or is there already.
    fn take(&self, wanted: usize) -> MutableBuffer {
        if wanted < ROUND {
            return MutableBuffer::with_capacity(wanted);
        }
        let fits = wanted..=wanted.saturating_mul(TOO_LARGE);
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match free.iter().position(|buffer| fits.contains(&buffer.capacity())) {
            Some(fitting) => free.swap_remove(fitting),
            None => {
                // It does not fit what comes now: it would only wait.
                free.pop();
                MutableBuffer::with_capacity(wanted.next_multiple_of(ROUND).min(BODY_AHEAD))
            }
        }
    }

    /// Gives the bytes away; the buffer comes back when the last of their owners is gone.
    fn lend(&self, buffer: MutableBuffer, held: Option<Held>) -> Bytes {
        Bytes::from_owner(Lent { buffer, pool: self.clone(), _held: held })
    }
}

/// Makes room for `more` bytes of a body of `wanted` in all: what is reserved is at most twice what has come.
fn grow(buffer: &mut MutableBuffer, more: usize, wanted: usize) {
    let needed = buffer.len() + more;
    if needed <= buffer.capacity() {
        return;
    }
    let capacity = needed.max(2 * buffer.capacity()).min(wanted).next_multiple_of(ROUND);
    let mut larger = MutableBuffer::with_capacity(capacity);
    larger.extend_from_slice(buffer.as_slice());
    *buffer = larger;
}

struct Lent {
    buffer: MutableBuffer,
    pool: Pool,
    _held: Option<Held>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.capacity() < ROUND {
            return;
        }
        buffer.clear();
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting: usize = free.iter().map(MutableBuffer::capacity).sum();
        if waiting + buffer.capacity() <= WAITING {
            free.push(buffer);
        }
    }
}
