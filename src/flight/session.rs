//! Flight's own messages about sessions (Flight.proto), which arrow-flight does not have yet.

/// The body of the action CloseSession.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CloseSessionRequest {}

/// What it answers.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CloseSessionResult {
    #[prost(enumeration = "CloseSessionStatus", tag = "1")]
    pub(super) status: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum CloseSessionStatus {
    Unspecified = 0,
    Closed = 1,
    Closing = 2,
    NotCloseable = 3,
}
