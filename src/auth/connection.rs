//! Whether the connection that a call came by still stands.

use std::sync::{Arc, Weak};

/// Held by a connection as long as it stands.
#[derive(Default)]
pub struct Standing(Arc<()>);

/// One connection, for whoever keeps something for its client; in the extensions of its requests.
#[derive(Debug, Clone)]
pub struct Connection {
    stands: Weak<()>,
    id: [u8; 16],
}

impl Standing {
    pub fn connection(&self) -> Connection {
        let mut id = [0_u8; 16];
        getrandom::fill(&mut id).expect("the operating system hands out random bytes");
        Connection { stands: Arc::downgrade(&self.0), id }
    }
}

impl Connection {
    pub fn stands(&self) -> bool {
        self.stands.strong_count() > 0
    }

    /// Of this connection and of no other one, also once it has ended.
    pub fn id(&self) -> String {
        self.id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl PartialEq for Connection {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Connection {}
