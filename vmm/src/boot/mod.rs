//! Boot: kernel loader, boot parameters, ACPI tables.
