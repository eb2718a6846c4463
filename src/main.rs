use std::process::ExitCode;

fn main() -> ExitCode {
    mallard::cli::main()
}
