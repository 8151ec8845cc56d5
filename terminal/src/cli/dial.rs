//! `dial`: stdin and stdout as a connection to another terminal's service.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use super::{Place, VerbContext};
use crate::io::ipc::Request;
use crate::io::ipc::client::{Client, ClientError, Reply};

/// Runs until both directions ended, or the call was refused.
pub(crate) fn run(context: &VerbContext, place: Place) -> anyhow::Result<()> {
    let client = context.client()?;
    // SAFETY: nothing else in this process writes to stdout once `dial` runs, so descriptor 1 has one owner;
    // it is owned in order to be closed, which carries the other side's half-close on.
    #[allow(unsafe_code)]
    let stdout = File::from(unsafe { OwnedFd::from_raw_fd(1) });
    Ok(carry(client, place, std::io::stdin(), stdout)?)
}

/// Carries `source` to the service and what comes back to `sink`, which is dropped at its end.
///
/// # Errors
/// The refusal, at once, also while `source` stays open; [`ClientError::Output`] when `sink` takes no more.
pub fn carry(
    mut client: Client,
    place: Place,
    mut source: impl Read + Send + 'static,
    sink: impl Write,
) -> Result<(), ClientError> {
    client.send(&Request::Dial { target: place.target, service: place.service })?;
    let mut up = client.data_writer()?;
    // Reading cannot be interrupted, so the thread is left alone; it ends with its source or the process.
    std::thread::spawn(move || up.copy_from(&mut source));
    let mut sink = Some(sink);
    loop {
        match client.hear() {
            Ok(Reply::Data(bytes)) => {
                if let Some(sink) = &mut sink {
                    let written = sink.write_all(&bytes).and_then(|()| sink.flush());
                    written.map_err(ClientError::Output)?;
                }
            }
            Ok(Reply::End) => sink = None,
            Ok(Reply::Event(_) | Reply::Result(_)) => {}
            Err(ClientError::Lost(_)) if sink.is_none() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
