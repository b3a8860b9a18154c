"""What comparing many recipes costs against running them one by one."""
