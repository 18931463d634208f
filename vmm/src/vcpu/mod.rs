//! vCPUs: registers, CPUID, MSRs, and the threads that run them.
