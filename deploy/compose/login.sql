-- The login of the compose file's gateways. psql reads the password from its environment.
\getenv password GATEWAY_PASSWORD
SELECT 'CREATE ROLE gateway LOGIN IN ROLE mpack_gateway'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'gateway') \gexec
ALTER ROLE gateway PASSWORD :'password';
