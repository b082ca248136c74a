//! A program run in a container for a client: its streams go through the pod's monitor.

use rpc::v1::exec_input::Input;
use rpc::v1::exec_output::Output;
use rpc::v1::{ExecEnd, ExecOutput, ExecStart, carry_down, carry_up};
use runtime::monitor::frame::Stream;
use runtime::monitor::protocol::Request;
use tonic::Status;

use super::{Down, Stop, Up};
use crate::pod::Handle;
use crate::pod::monitor::{Client, MonitorError, SessionSender};

/// What shells say of a program that cannot be run.
const CANNOT_RUN: i32 = 126;
/// Most of a client's input in one frame of the monitor's.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// Runs it to its end. The monitor hangs it up when this is dropped before.
pub(super) async fn run(pod: &Handle, start: ExecStart, up: &Up, down: &mut Down) -> Result<(), Stop> {
    if start.command.is_empty() {
        return Err(Status::invalid_argument("exec without a command").into());
    }
    let target = start.pod.unwrap_or_default();
    let container = pod.container(&target.container);
    let container = container.ok_or_else(|| no_container(&target.container))?;
    let id = match (&container.id, container.running) {
        (Some(id), true) => id.clone(),
        _ => {
            let message = format!(
                "container {} of pod {} is not running",
                container.name, target.name
            );
            return Err(Status::failed_precondition(message).into());
        }
    };
    let request = Request::Exec {
        id,
        args: start.command,
        stdin: start.stdin,
        tty: start.tty,
        timeout_ms: None,
    };
    let client = Client::connect(&container.monitor_dir)
        .await
        .map_err(MonitorError::from);
    let client = client.map_err(|error| unavailable(&error))?;
    let session = match client.stream(&request).await {
        Ok(session) => session,
        // It did not come to a process: the end of the call, not a failure of it.
        Err(MonitorError::Failed { message, .. }) => {
            return end(up, CANNOT_RUN, message).await;
        }
        Err(error) => return Err(unavailable(&error).into()),
    };
    let (mut input, mut output) = session.split();
    let mut open = true;
    let ended = loop {
        tokio::select! {
            frame = output.receive() => {
                let bytes = match frame.map_err(|error| unavailable(&error))? {
                    Stream::Stdout(bytes) => Output::Stdout(bytes),
                    Stream::Stderr(bytes) => Output::Stderr(bytes),
                    Stream::Exit(ended) => break ended,
                    Stream::Stdin(_) | Stream::Resize { .. } => continue, // not in this direction
                };
                send(up, bytes).await?;
            }
            frame = down.next(), if open => {
                let frame = frame?;
                open = frame.is_some();
                feed(&mut input, frame).await?;
            }
            () = up.closed() => return Err(Stop::Left),
        }
    };
    end(up, ended.code, ended.error.unwrap_or_default()).await
}

/// Passes input on; the end of frames is the end of input.
async fn feed(input: &mut SessionSender, frame: Option<carry_down::Frame>) -> Result<(), Stop> {
    let frame = match frame {
        None => Stream::Stdin(Vec::new()),
        Some(carry_down::Frame::Exec(frame)) => match frame.input {
            Some(Input::Stdin(bytes)) => {
                // An empty frame would be the end of input.
                for piece in bytes.chunks(INPUT_BYTES_MAX) {
                    pass(input, &Stream::Stdin(piece.to_vec())).await?;
                }
                return Ok(());
            }
            Some(Input::CloseStdin(true)) => Stream::Stdin(Vec::new()),
            Some(Input::Resize(size)) => Stream::Resize {
                columns: u16::try_from(size.columns).unwrap_or(u16::MAX),
                rows: u16::try_from(size.rows).unwrap_or(u16::MAX),
            },
            Some(Input::Start(_) | Input::CloseStdin(false)) | None => return Ok(()),
        },
        Some(carry_down::Frame::ImportImage(_)) => {
            return Err(Status::invalid_argument("an archive is no input of exec").into());
        }
    };
    pass(input, &frame).await
}

/// A process that has ended takes no more input, which is no failure: its end is on its way.
async fn pass(input: &mut SessionSender, frame: &Stream) -> Result<(), Stop> {
    match input.send(frame).await {
        Err(error) if !error.is_gone() => Err(unavailable(&error).into()),
        _ => Ok(()),
    }
}

async fn send(up: &Up, output: Output) -> Result<(), Stop> {
    let frame = ExecOutput { output: Some(output) };
    up.send(carry_up::Frame::Exec(frame)).await
}

async fn end(up: &Up, exit_code: i32, error: String) -> Result<(), Stop> {
    send(up, Output::End(ExecEnd { exit_code, error })).await
}

/// The pod has no container of this name.
pub(super) fn no_container(name: &str) -> Status {
    match name {
        "" => Status::failed_precondition("the pod has no container yet"),
        name => Status::not_found(format!("the pod has no container {name}")),
    }
}

fn unavailable(error: &MonitorError) -> Status {
    Status::unavailable(runtime::monitor::chain(error))
}
