//! Paths of Windows, as text: nothing here looks at a file system.

/// The last part of a path of either kind.
#[must_use]
pub fn file_name(path: &str) -> &str {
    path.rsplit(['\\', '/']).next().unwrap_or(path)
}

/// Whether a path is one of Windows: it has a drive letter, begins with two back-slashes, or has back-slashes and no
/// slash at its start.
#[must_use]
pub fn is_windows(path: &str) -> bool {
    let mut chars = path.chars();
    let letter = chars.next().is_some_and(|c| c.is_ascii_alphabetic()) && chars.next() == Some(':');
    letter || path.starts_with(r"\\") || (path.contains('\\') && !path.starts_with('/'))
}

/// A Windows path, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowsPath {
    /// `C:`, `\\server\share`, `\\?\Volume{…}`, or empty for a relative path.
    pub root: String,
    /// Folders and the file, without `.` and empty parts. `..` stays: whoever maps the path decides about it.
    pub parts: Vec<String>,
}

impl WindowsPath {
    /// Takes a path apart. Slashes count as back-slashes; `\\?\C:\x` and `\\?\UNC\server\share\x` are the same as without
    /// the prefix.
    #[must_use]
    pub fn parse(path: &str) -> Self {
        let text = path.replace('/', "\\");
        let (text, verbatim) = match text.strip_prefix(r"\\?\").or_else(|| text.strip_prefix(r"\\.\")) {
            Some(rest) => (rest.to_owned(), true),
            None => (text, false),
        };
        let split = |rest: &str| -> Vec<String> {
            rest.split('\\').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
        };
        let share = match text.get(..4) {
            Some(prefix) if verbatim && prefix.eq_ignore_ascii_case(r"UNC\") => text.get(4..),
            _ => text.strip_prefix(r"\\"),
        };
        if let Some(rest) = share {
            let mut parts = split(rest);
            let taken = parts.len().min(2);
            let root: Vec<String> = parts.drain(..taken).collect();
            return Self { root: format!(r"\\{}", root.join("\\")), parts };
        }
        let mut parts = split(&text);
        let is_root = |part: &String| {
            let letter = part.len() == 2 && part.ends_with(':');
            letter || (verbatim && part.to_ascii_lowercase().starts_with("volume{"))
        };
        let root = if parts.first().is_some_and(is_root) { parts.remove(0) } else { String::new() };
        let root = if root.len() > 2 { format!(r"\\?\{root}") } else { root };
        Self { root, parts }
    }

    /// The last part; empty for a bare root.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.parts.last().map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_paths_are_taken_apart_whatever_their_form() {
        for (path, root, parts) in [
            (r"C:\VMs\web\disk.vhd", "C:", vec!["VMs", "web", "disk.vhd"]),
            (r"d:/VMs//./disk.vhd", "d:", vec!["VMs", "disk.vhd"]),
            (r"\\nas\vms\a\b.vhdx", r"\\nas\vms", vec!["a", "b.vhdx"]),
            (r"\\?\C:\x.vhd", "C:", vec!["x.vhd"]),
            (r"\\?\UNC\nas\vms\x.vhd", r"\\nas\vms", vec!["x.vhd"]),
            (r"\\?\Volume{12-34}\x.vhd", r"\\?\Volume{12-34}", vec!["x.vhd"]),
            (r".\sub\x.vhd", "", vec!["sub", "x.vhd"]),
            (r"..\x.vhd", "", vec!["..", "x.vhd"]),
            (r"\\nas", r"\\nas", vec![]),
            ("", "", vec![]),
            ("Ⓒ:é", "", vec!["Ⓒ:é"]),
        ] {
            let found = WindowsPath::parse(path);
            assert_eq!(
                (found.root.as_str(), found.parts),
                (root, parts.into_iter().map(String::from).collect()),
                "{path}"
            );
        }
        assert_eq!(WindowsPath::parse(r"C:\a\b.vhd").file_name(), "b.vhd");
        assert_eq!(file_name(r"C:\a/b.vhd"), "b.vhd");
    }

    #[test]
    fn a_path_of_this_host_is_no_windows_path() {
        for path in [r"C:\x", r"\\nas\x", r"sub\x", "c:x"] {
            assert!(is_windows(path), "{path}");
        }
        for path in ["/vm/disk.vhd", "disk.vhd", r"/vm/odd\name.vhd", ""] {
            assert!(!is_windows(path), "{path}");
        }
    }
}
