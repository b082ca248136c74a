//! `ctl exec POD -- COMMAND`: a program in a running container, with this terminal or these pipes.

use std::io::Read;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use rpc::v1::exec_input::Input;
use rpc::v1::exec_output::Output as Frame;
use rpc::v1::{ExecInput, ExecStart, PodRef, TerminalSize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;
use crate::pods;

/// Bytes read from standard input at a time.
const INPUT_BYTES: usize = 32 << 10;
/// Input frames on their way; reading stops while the container does not take them.
const INPUT_FRAMES_MAX: usize = 8;

/// Arguments of `ctl exec`.
#[derive(clap::Args)]
pub(crate) struct Exec {
    /// The pod, as pod/web-1 or web-1; or one of what has pods, as deploy/web
    #[arg(required = true, value_name = "POD")]
    pod: String,
    /// The container; may be left out where there is one
    #[arg(short, long, value_name = "CONTAINER")]
    container: Option<String>,
    /// Connect standard input
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the program a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs it and ends with its exit code.
pub(crate) async fn run(args: Exec, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let start = ExecStart {
        pod: Some(PodRef {
            namespace: cluster.namespace.clone(),
            name: pods::find(cluster, &args.pod, out).await?,
            container: args.container.unwrap_or_default(),
        }),
        command: args.command,
        tty: args.tty,
        stdin: args.stdin,
    };
    let (input, frames) = mpsc::channel(INPUT_FRAMES_MAX);
    // The channel is new and has room.
    send(&input, Input::Start(start)).await;
    let raw = if args.tty { RawTerminal::enter()? } else { None };
    if raw.is_some() {
        tokio::spawn(follow_size(input.clone()));
    }
    if args.stdin {
        let input = input.clone();
        std::thread::spawn(move || read_input(&input));
    }
    // Without standard input the stream stays open all the same: it is the call.
    let answer = cluster
        .api
        .clone()
        .exec(ReceiverStream::new(frames))
        .await
        .map_err(|status| cluster.error(status))?;
    let mut frames = answer.into_inner();
    let mut ended = None;
    while let Some(frame) = frames.message().await.map_err(|status| cluster.error(status))? {
        match frame.output {
            Some(Frame::Stdout(bytes)) => out.bytes(&bytes)?,
            Some(Frame::Stderr(bytes)) => {
                use std::io::Write;
                std::io::stderr()
                    .write_all(&bytes)
                    .map_err(CtlError::io("failed to write to standard error"))?;
            }
            Some(Frame::End(end)) => ended = Some(end),
            None => {}
        }
    }
    drop(raw);
    drop(input);
    match ended {
        None => Err(CtlError::refused("the connection ended before the program did")),
        Some(end) if !end.error.is_empty() => {
            out.note(format_args!("error: {}", end.error));
            Err(CtlError::Exited(if end.exit_code == 0 {
                1
            } else {
                end.exit_code
            }))
        }
        Some(end) if end.exit_code == 0 => Ok(()),
        Some(end) => Err(CtlError::Exited(end.exit_code)),
    }
}

/// Whether the call still takes input.
async fn send(input: &mpsc::Sender<ExecInput>, frame: Input) -> bool {
    input.send(ExecInput { input: Some(frame) }).await.is_ok()
}

/// Copies standard input, on a thread of its own: a read of a terminal cannot be taken back.
fn read_input(input: &mpsc::Sender<ExecInput>) {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = vec![0; INPUT_BYTES];
    loop {
        let frame = match stdin.read(&mut buffer) {
            Ok(0) | Err(_) => Input::CloseStdin(true),
            Ok(count) => Input::Stdin(buffer.get(..count).unwrap_or_default().to_vec()),
        };
        let last = matches!(frame, Input::CloseStdin(_));
        if input.blocking_send(ExecInput { input: Some(frame) }).is_err() || last {
            return;
        }
    }
}

/// Tells the terminal's size, now and whenever it changes.
async fn follow_size(input: mpsc::Sender<ExecInput>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    loop {
        if let Some((columns, rows)) = terminal_size()
            && !send(&input, Input::Resize(TerminalSize { columns, rows })).await
        {
            return;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

fn terminal_size() -> Option<(u32, u32)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdin()).ok()?;
    Some((u32::from(size.ws_col), u32::from(size.ws_row)))
}

/// The terminal in raw mode; put back on drop.
struct RawTerminal(Termios);

impl RawTerminal {
    /// None where standard input is no terminal.
    fn enter() -> Result<Option<Self>, CtlError> {
        let Ok(before) = tcgetattr(std::io::stdin()) else {
            return Ok(None);
        };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)
            .map_err(|error| CtlError::io("failed to set up the terminal")(error.into()))?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0) {
            eprintln!("failed to put the terminal back: {error}; `reset` helps");
        }
    }
}
