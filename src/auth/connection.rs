//! Whether the connection that a call came by still stands.

use std::sync::{Arc, Weak};

/// Held by a connection as long as it stands.
#[derive(Default)]
pub struct Standing(Arc<()>);

/// One connection, for whoever keeps something for its client; in the extensions of its requests.
#[derive(Debug, Clone)]
pub struct Connection(Weak<()>);

impl Standing {
    pub fn connection(&self) -> Connection {
        Connection(Arc::downgrade(&self.0))
    }
}

impl Connection {
    pub fn stands(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl PartialEq for Connection {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

impl Eq for Connection {}
