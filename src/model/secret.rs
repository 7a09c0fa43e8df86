//! Which variables of the environment are secrets: they are not passed on to a user's commands.

/// What the commands of steps and gates never get; what one needs is set in its own configuration.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let words =
        ["SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "TOKEN", "CREDENTIAL", "PRIVATE_KEY", "ACCESS_KEY", "API_KEY"];
    name.starts_with("AWS_")
        || words.iter().any(|word| name.contains(word))
        || name.starts_with("BK_") && name.ends_with("KEY")
}

/// bk's own: what even the command of a stream does not get, which may need its database's password.
pub fn is_own(name: &str) -> bool {
    is_secret(name) && ["AWS_", "BK_"].iter().any(|prefix| name.to_ascii_uppercase().starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets() {
        for name in ["AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "BK_S3_SECRET", "BK_AGE_KEY", "bk_password"] {
            assert!(is_secret(name) && is_own(name), "{name}");
        }
        for name in ["PGPASSWORD", "GITHUB_TOKEN", "DB_PASSPHRASE", "GOOGLE_APPLICATION_CREDENTIALS"] {
            assert!(is_secret(name) && !is_own(name), "{name}");
        }
        for name in ["PATH", "HOME", "PGHOST", "BK_JOB", "BK_RUN_ID", "SWSTGNODE", "KEYBOARD"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
