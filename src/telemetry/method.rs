//! The RPCs by name, as metrics, spans and log lines call them.

/// One RPC. What clients make up is [`Method::OTHER`], so that labels stay few.
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    pub service: &'static str,
    pub name: &'static str,
    /// `service/name`.
    pub full: &'static str,
    /// `unary`, `client_stream`, `server_stream` or `bidi_stream`.
    pub grpc_type: &'static str,
}

macro_rules! methods {
    ($($service:literal: $($name:literal $grpc_type:literal),+;)+) => {
        &[$($(Method {
            service: $service,
            name: $name,
            full: concat!($service, "/", $name),
            grpc_type: $grpc_type,
        }),+),+]
    };
}

impl Method {
    pub const ALL: &'static [Self] = methods! {
        "arrow.flight.protocol.FlightService":
            "Handshake" "bidi_stream", "ListFlights" "server_stream", "GetFlightInfo" "unary", "PollFlightInfo" "unary",
            "GetSchema" "unary", "DoGet" "server_stream", "DoPut" "bidi_stream", "DoExchange" "bidi_stream",
            "DoAction" "server_stream", "ListActions" "server_stream";
        "grpc.health.v1.Health": "Check" "unary", "Watch" "server_stream";
    };

    const OTHER: Self = Self { service: "unknown", name: "unknown", full: "_OTHER", grpc_type: "unary" };

    /// The method that an HTTP/2 path (`/service/name`) asks for.
    pub fn of_path(path: &str) -> &'static Self {
        let full = path.strip_prefix('/').unwrap_or(path);
        Self::ALL.iter().find(|method| method.full == full).unwrap_or(&Self::OTHER)
    }

    /// An RPC of the Flight service, or of health, by its name.
    pub fn named(name: &str) -> &'static Self {
        Self::ALL.iter().find(|method| method.name == name).unwrap_or(&Self::OTHER)
    }

    pub fn is_health(&self) -> bool {
        self.service == "grpc.health.v1.Health"
    }

    /// A health Watch never ends, and no stop waits for it.
    pub fn is_endless(&self) -> bool {
        self.is_health() && self.name == "Watch"
    }
}
