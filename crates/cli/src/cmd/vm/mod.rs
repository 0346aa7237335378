//! `backstay vm`

mod clone;
mod console;
mod create;
mod delete;
mod disks;
mod list;
mod move_disk;
mod power;
mod register;
mod rename;
mod screenshot;
mod set;
mod show;
mod template;
mod terminal;
mod unregister;

use crate::context::Context;
use clap::Subcommand;

/// Virtual machines.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Make a machine
    Create(Box<create::CreateArgs>),
    /// All machines of this host
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// One machine with all its settings
    Show(show::ShowArgs),
    /// Power on
    Start(power::StartArgs),
    /// Ask the guest to shut down
    Shutdown(power::PowerArgs),
    /// Pull the plug
    TurnOff(power::PowerArgs),
    /// Stop the processors, keep memory
    Pause(power::PowerArgs),
    /// Continue after a pause
    Resume(power::PowerArgs),
    /// Press the reset button
    Reset(power::PowerArgs),
    /// Write memory to disk and power off; the next start continues
    Save(power::PowerArgs),
    /// Throw a saved memory away: the machine is off then
    DiscardSavedState(power::PowerArgs),
    /// Change settings, attach and detach drives and network cards
    Set(Box<set::SetArgs>),
    /// Change the display name
    Rename(rename::RenameArgs),
    /// Make a machine from another one, a template or a checkpoint
    Clone(clone::CloneArgs),
    /// Make a machine a template, which is cloned and never started or changed
    Template(template::TemplateArgs),
    /// Remove a machine with its checkpoints
    Delete(delete::DeleteArgs),
    /// Bring back the machines of a folder
    Register(register::RegisterArgs),
    /// Forget a registered folder with its machines; its files stay
    Unregister(unregister::UnregisterArgs),
    /// The machine's disks with their chains
    Disks(disks::DisksArgs),
    /// Move a disk's file to another folder or file system
    MoveDisk(move_disk::MoveDiskArgs),
    /// Connect this terminal to the machine's serial port
    Console(console::ConsoleArgs),
    /// Save a picture of the machine's screen
    Screenshot(screenshot::ScreenshotArgs),
}

impl VmCommand {
    /// Runs the command.
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        use power::Verb;
        context.block_on(async {
            match self {
                Self::Create(args) => create::run(context, &args).await,
                Self::List(args) => list::run(context, &args).await,
                Self::Show(args) => show::run(context, &args).await,
                Self::Start(args) => power::start(context, &args).await,
                Self::Shutdown(args) => power::run(context, &args, Verb::Shutdown).await,
                Self::TurnOff(args) => power::run(context, &args, Verb::TurnOff).await,
                Self::Pause(args) => power::run(context, &args, Verb::Pause).await,
                Self::Resume(args) => power::run(context, &args, Verb::Resume).await,
                Self::Reset(args) => power::run(context, &args, Verb::Reset).await,
                Self::Save(args) => power::run(context, &args, Verb::Save).await,
                Self::DiscardSavedState(args) => power::discard(context, &args).await,
                Self::Set(args) => set::run(context, &args).await,
                Self::Rename(args) => rename::run(context, &args).await,
                Self::Clone(args) => clone::run(context, &args).await,
                Self::Template(args) => template::run(context, &args).await,
                Self::Delete(args) => delete::run(context, &args).await,
                Self::Register(args) => register::run(context, &args).await,
                Self::Unregister(args) => unregister::run(context, &args).await,
                Self::Disks(args) => disks::run(context, &args).await,
                Self::MoveDisk(args) => move_disk::run(context, &args).await,
                Self::Console(args) => console::run(context, &args).await,
                Self::Screenshot(args) => screenshot::run(context, &args).await,
            }
        })
    }
}
