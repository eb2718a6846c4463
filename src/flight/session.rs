//! Flight's own messages about sessions (Flight.proto), which arrow-flight does not have yet.

use std::collections::HashMap;

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

pub(super) const SET_SESSION_OPTIONS: &str = "SetSessionOptions";
pub(super) const GET_SESSION_OPTIONS: &str = "GetSessionOptions";

/// The value of one option.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SessionOptionValue {
    /// Nothing takes the option back.
    #[prost(oneof = "OptionValue", tags = "1, 2, 3, 4, 5")]
    pub(super) option_value: Option<OptionValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum OptionValue {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(sfixed64, tag = "3")]
    Int64(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(message, tag = "5")]
    Texts(StringListValue),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StringListValue {
    #[prost(string, repeated, tag = "1")]
    pub(super) values: Vec<String>,
}

/// The body of the action SetSessionOptions.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SetSessionOptionsRequest {
    #[prost(map = "string, message", tag = "1")]
    pub(super) session_options: HashMap<String, SessionOptionValue>,
}

/// What it answers: the options that were not set.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub(super) errors: HashMap<String, OptionError>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OptionError {
    #[prost(enumeration = "OptionErrorValue", tag = "1")]
    pub(super) value: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum OptionErrorValue {
    Unspecified = 0,
    InvalidName = 1,
    InvalidValue = 2,
    Error = 3,
}

/// The body of the action GetSessionOptions.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GetSessionOptionsRequest {}

/// What it answers.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub(super) session_options: HashMap<String, SessionOptionValue>,
}
