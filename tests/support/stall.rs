//! Simulates a stalled disk: suspends the server thread that writes to the disk, as if a system call of that thread
//! never returned. All other threads continue.
#![allow(dead_code)] // each test binary uses only part of this module

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::support::{Server, print_skipped, require_tool, wait_until};

/// A Python script that suspends one thread with ptrace(2), because signals suspend the whole process. The thread
/// continues when the script ends.
const SCRIPT: &str = r#"
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
thread = int(sys.argv[1])
for request in [PTRACE_SEIZE, PTRACE_INTERRUPT]:
    if libc.ptrace(request, thread, None, None) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(thread, WALL)
# The process cannot end before its tracer has seen the end of the thread.
threading.Thread(target=os.waitpid, args=(thread, WALL), daemon=True).start()
print("stopped", flush=True)
sys.stdin.read()
"#;

pub struct Stall(Child);

impl Stall {
    /// Suspends the thread that writes to the disk. Returns `None` if Python or permission for ptrace(2) is missing.
    pub fn begin(server: &Server) -> Option<Stall> {
        let python = require_tool("python3", &[])?;
        let mut thread = None;
        // Find the thread by its name, `history`. The name may appear only after the server has printed its listen
        // address, so wait for it.
        wait_until("the thread that writes has its name", || {
            let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).expect("a process");
            let mut tasks = tasks.map(|task| task.expect("a thread").path());
            thread = tasks.find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "history\n"));
            thread.is_some()
        });
        let thread = thread.expect("it has its name");
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT]).arg(thread.file_name().expect("a number"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let stall = Stall(child);
        if line == "stopped\n" {
            return Some(stall);
        }
        assert!(std::env::var_os("WIRECHAT_NO_SKIP").is_none(), "ptrace is not allowed and nothing may be skipped");
        print_skipped("this test needs ptrace(2) for a child of another process");
        None
    }

    /// Lets the suspended thread continue: dropping `self` closes the script's stdin, which ends the script.
    pub fn end(self) {}
}

impl Drop for Stall {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
