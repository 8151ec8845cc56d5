//! The status endpoint, and the same over the local socket for the relay's own verbs.

use crate::core::admin::{AdminReply, AdminRequest};
use tokio::sync::{mpsc, oneshot};

/// A request to the core and where its answer goes.
pub type AdminCall = (AdminRequest, oneshot::Sender<AdminReply>);

/// Asks the core, through the same inbox as everybody.
#[derive(Debug, Clone)]
pub struct Admin(mpsc::Sender<AdminCall>);

impl Admin {
    /// Requests go to `inbox`.
    pub fn new(inbox: mpsc::Sender<AdminCall>) -> Self {
        Self(inbox)
    }

    /// Asks; `None` when the relay is going down.
    pub async fn ask(&self, request: AdminRequest) -> Option<AdminReply> {
        let (reply, answer) = oneshot::channel();
        self.0.send((request, reply)).await.ok()?;
        answer.await.ok()
    }
}
