package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// principal is who people mean by a name: with a prefix or an issuer what they
// say, and else somebody who is known here alone.
func principal(name string) string {
	for _, prefix := range []string{control.LocalPrefix, "group:", "role:", "https://"} {
		if strings.HasPrefix(name, prefix) {
			return name
		}
	}
	return control.LocalPrefix + strings.ToLower(name)
}

// table prints rows under a head, or the value as JSON.
func table(c *cobra.Command, asJSON bool, value any, head string, rows [][]string) error {
	if asJSON {
		return printJSON(c.OutOrStdout(), value)
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, head)
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// parseValid reads how long something is to be valid: 30d, 12h, or as in
// documents P1DT12H.
func parseValid(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n < 100000 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return d, nil
	}
	if d, err := policy.ParseDuration(s); err == nil && d > 0 {
		return d, nil
	}
	return 0, usage.Errorf("%q is not a time like 30d, 12h or 90m", s)
}

func date(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return policy.FormatTime(t)
}

func newUser() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "user",
		Short: "Who has which role where",
		Long: `Gives roles at scopes, and takes them away. A name without a prefix is somebody
known here alone (local:NAME, who calls with a token); people of an issuer are
ISSUER#SUBJECT, as a refusal names them, and their groups group:NAME.`,
	}, newUserList(), newUserAdd(), newUserRemove())
}

func newUserList() *cobra.Command {
	var o origin
	var scope string
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List who has which role where",
		Example: "  jitgate-control user list\n  jitgate-control user list --scope /subscriptions/S --json",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := control.ParseScope(scope)
			if err != nil {
				return usage.Errorf("--scope: %w", err)
			}
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				given, err := e.ListAssignments(ctx, who, s)
				if err != nil {
					return err
				}
				rows := make([][]string, 0, len(given))
				for _, a := range given {
					rows = append(rows, []string{a.Principal, a.Role, string(a.Scope)})
				}
				return table(c, asJSON, given, "WHO\tROLE\tSCOPE", rows)
			})
		},
	}
	o.dataFlags(c)
	c.Flags().StringVar(&scope, "scope", "/", "of what is at this scope and below")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// assignmentFlags are those that say which role where.
func assignmentFlags(c *cobra.Command, role, scope *string) {
	c.Flags().StringVar(role, "role", "", "role: Owner, Contributor, Reader, SecurityReader, SecurityAdmin, JITRequester, or one defined with role put")
	c.Flags().StringVar(scope, "scope", "", "/ for everything, a subscription, a resource group or a machine")
	var names []string
	for _, r := range control.BuiltinRoles() {
		names = append(names, r.Name)
	}
	must(c.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)))
}

// must ends the program at a mistake in itself.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func newUserAdd() *cobra.Command {
	var o origin
	var role, scope string
	c := &cobra.Command{
		Use:   "add NAME --role ROLE --scope SCOPE",
		Short: "Give somebody a role at a scope",
		Example: `  jitgate-control user add alice@example.com --role JITRequester --scope /subscriptions/S
  jitgate-control user add group:admins --role SecurityAdmin --scope /subscriptions/S/resourceGroups/G`,
		Args: usage.Args(1, 1, "one name"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := usage.Required(c, "role", "scope"); err != nil {
				return err
			}
			a := control.Assignment{Principal: principal(args[0]), Role: role, Scope: control.Scope(scope)}
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				if err := e.Assign(ctx, who, a); err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "%s has role %s at %s.\n", a.Principal, role, scope)
				return nil
			})
		},
	}
	o.dataFlags(c)
	assignmentFlags(c, &role, &scope)
	return c
}

func newUserRemove() *cobra.Command {
	var o origin
	var role, scope string
	c := &cobra.Command{
		Use:   "remove NAME [--role ROLE --scope SCOPE]",
		Short: "Take a role away, or all roles and tokens",
		Long: `Takes a role at a scope away. Without --role it takes everything away: all roles,
and every token is revoked. What they had opened stays open to its end: revoke
requests where that is too long.`,
		Example: `  jitgate-control user remove alice@example.com
  jitgate-control user remove alice@example.com --role JITRequester --scope /subscriptions/S`,
		Args: usage.Args(1, 1, "one name"),
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("role") != c.Flags().Changed("scope") {
				return usage.Errorf("--role and --scope go together: see %s --help", c.CommandPath())
			}
			name := principal(args[0])
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				if role != "" {
					if err := e.Unassign(ctx, who, control.Assignment{Principal: name, Role: role, Scope: control.Scope(scope)}); err != nil {
						return err
					}
					fmt.Fprintf(c.OutOrStdout(), "%s has role %s at %s no longer.\n", name, role, scope)
					return nil
				}
				roles, tokens, err := removeAll(ctx, e, who, name)
				if err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "%s has nothing left: %d roles taken away, %d tokens revoked.\n", name, roles, tokens)
				return nil
			})
		},
	}
	o.dataFlags(c)
	assignmentFlags(c, &role, &scope)
	return c
}

// removeAll takes all roles of a principal away and revokes all tokens: the
// roles first, since a token without a role may do nothing.
func removeAll(ctx context.Context, e *control.Engine, who control.Caller, name string) (roles, tokens int, err error) {
	given, err := e.ListAssignments(ctx, who, control.Everywhere)
	if err != nil {
		return 0, 0, err
	}
	for _, a := range given {
		if a.Principal != name {
			continue
		}
		if err := e.Unassign(ctx, who, a); err != nil {
			return roles, tokens, err
		}
		roles++
	}
	all, err := e.ListTokens(ctx, who)
	if err != nil {
		return roles, tokens, err
	}
	for _, t := range all {
		if t.Principal != name || t.Revoked {
			continue
		}
		if err := e.RevokeToken(ctx, who, t.ID); err != nil {
			return roles, tokens, err
		}
		tokens++
	}
	if roles+tokens == 0 {
		return 0, 0, fmt.Errorf("%s has no role and no token: jitgate-control user list shows who has", name)
	}
	return roles, tokens, nil
}

func newToken() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "token",
		Short: "Bearer tokens of people and programs known here alone",
	}, newTokenList(), newTokenCreate(), newTokenRevoke())
}

func newTokenList() *cobra.Command {
	var o origin
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List tokens; the tokens themselves are not kept",
		Example: "  jitgate-control token list --json",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				tokens, err := e.ListTokens(ctx, who)
				if err != nil {
					return err
				}
				rows := make([][]string, 0, len(tokens))
				for _, t := range tokens {
					state := date(t.Expires)
					if t.Revoked {
						state = "revoked"
					}
					bounds := strings.TrimSpace(t.Role + " " + string(t.Scope))
					if bounds == "" {
						bounds = "all its owner may"
					}
					rows = append(rows, []string{t.ID, t.Principal, bounds, date(t.Created), state, t.Note})
				}
				return table(c, asJSON, tokens, "ID\tFOR\tBOUNDS\tCREATED\tEXPIRES\tNOTE", rows)
			})
		},
	}
	o.dataFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newTokenCreate() *cobra.Command {
	var o origin
	var owner, role, scope, note, valid string
	var asJSON bool
	c := &cobra.Command{
		Use:   "create --for NAME",
		Short: "Make a token, and show it once",
		Long: `Makes a token with which NAME calls the API. It may do what NAME may (see user
add), and with --role and --scope only what is inside both. It is shown once.`,
		Example: `  jitgate-control token create --for alice@example.com --expires 30d
  jitgate-control token create --for ci --role JITRequester --scope /subscriptions/S --note "nightly deployment"`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := usage.Required(c, "for"); err != nil {
				return err
			}
			in := control.TokenInput{Principal: principal(owner), Role: role, Scope: control.Scope(scope), Note: note}
			var err error
			if in.Valid, err = parseValid(valid); err != nil {
				return err
			}
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				token, t, err := e.CreateToken(ctx, who, in)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), map[string]any{"token": token, "id": t.ID, "principal": t.Principal, "expires": t.Expires})
				}
				fmt.Fprintf(c.OutOrStdout(), "%s\nToken %s for %s, until %s. It is not shown again.\n", token, t.ID, t.Principal, date(t.Expires))
				return nil
			})
		},
	}
	o.dataFlags(c)
	c.Flags().StringVar(&owner, "for", "", "whose token it is")
	c.Flags().StringVar(&role, "role", "", "bound it to this role")
	c.Flags().StringVar(&scope, "scope", "", "bound it to this scope")
	c.Flags().StringVar(&note, "note", "", "what it is for")
	c.Flags().StringVar(&valid, "expires", "30d", "how long it is valid: 30d, 12h")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newTokenRevoke() *cobra.Command {
	var o origin
	c := &cobra.Command{
		Use:     "revoke ID",
		Short:   "Make a token useless from the next call on",
		Example: "  jitgate-control token revoke 9f86d081884c",
		Args:    usage.Args(1, 1, "a token's id, as token list shows it"),
		RunE: func(c *cobra.Command, args []string) error {
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				if err := e.RevokeToken(ctx, who, args[0]); err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "Token %s is revoked.\n", args[0])
				return nil
			})
		},
	}
	o.dataFlags(c)
	return c
}

func newRole() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "role",
		Short: "Role definitions, in Azure's action strings",
	}, newRoleList(), newRolePut(), newRoleDelete())
}

func newRoleList() *cobra.Command {
	var o origin
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List roles, the built-in ones first",
		Example: "  jitgate-control role list --json",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				roles, err := e.ListRoles(ctx, who)
				if err != nil {
					return err
				}
				var rows [][]string
				for _, r := range roles {
					actions := strings.Join(r.Actions, " ")
					if len(r.NotActions) > 0 {
						actions += " but " + strings.Join(r.NotActions, " ")
					}
					rows = append(rows, []string{r.Name, r.Description, actions})
				}
				return table(c, asJSON, roles, "ROLE\tDESCRIPTION\tACTIONS", rows)
			})
		},
	}
	o.dataFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newRolePut() *cobra.Command {
	var o origin
	var r control.Role
	c := &cobra.Command{
		Use:     "put NAME --action ACTION…",
		Short:   "Define a role, or replace one that was defined here",
		Example: "  jitgate-control role put Approver --action Microsoft.Security/locations/jitNetworkAccessPolicies/approve/action --action '*/read'",
		Args:    usage.Args(1, 1, "a role's name"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := usage.Required(c, "action"); err != nil {
				return err
			}
			r.Name = args[0]
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				kept, err := e.PutRole(ctx, who, r)
				if err != nil {
					return err
				}
				text, err := json.Marshal(kept)
				if err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "%s\n", text)
				return nil
			})
		},
	}
	o.dataFlags(c)
	c.Flags().StringArrayVar(&r.Actions, "action", nil, "what the role allows; * is any run of characters; may be repeated")
	c.Flags().StringArrayVar(&r.NotActions, "not-action", nil, "what it does not allow of that; may be repeated")
	c.Flags().StringVar(&r.Description, "description", "", "what it is for")
	return c
}

func newRoleDelete() *cobra.Command {
	var o origin
	c := &cobra.Command{
		Use:     "delete NAME",
		Short:   "Remove a role that was defined here and that nobody has",
		Example: "  jitgate-control role delete Approver",
		Args:    usage.Args(1, 1, "a role's name"),
		RunE: func(c *cobra.Command, args []string) error {
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				if err := e.DeleteRole(ctx, who, args[0]); err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "There is no role %s any more.\n", args[0])
				return nil
			})
		},
	}
	o.dataFlags(c)
	return c
}

func newJoin() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "join",
		Short: "Join tokens, with which hosts enrol",
	}, newJoinList(), newJoinCreate(), newJoinRevoke())
}

func newJoinList() *cobra.Command {
	var o origin
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List join tokens that could still be used",
		Example: "  jitgate-control join list",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				joins, err := e.ListJoins(ctx, who)
				if err != nil {
					return err
				}
				var rows [][]string
				for i := range joins {
					joins[i].Hash = ""
					j := joins[i]
					rows = append(rows, []string{j.ID, string(j.Scope), strconv.Itoa(j.Uses), date(j.Expires), j.By})
				}
				return table(c, asJSON, joins, "ID\tSCOPE\tUSES LEFT\tEXPIRES\tBY", rows)
			})
		},
	}
	o.dataFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newJoinCreate() *cobra.Command {
	var o origin
	var scope, vm, valid string
	var uses int
	var asJSON bool
	c := &cobra.Command{
		Use:   "create --scope SCOPE | --vm ID",
		Short: "Make a join token, and show it once",
		Long: `Makes a token with which a host enrols: it has in it whom the host is to trust, so
carry it there by a way you trust. It works for the machine, or for any machine
at the scope, as often as --uses says, until it expires. It is shown once.`,
		Example: `  jitgate-control join create --scope /subscriptions/S/resourceGroups/G --uses 20 --expires 8h
  jitgate-control join create --vm /subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/web1`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			at := control.Scope(scope)
			switch {
			case (scope == "") == (vm == ""):
				return usage.Errorf("give --scope or --vm, one of them: see %s --help", c.CommandPath())
			case vm != "":
				id, err := control.ParseVMID(vm)
				if err != nil {
					return usage.Errorf("--vm: %w", err)
				}
				at = id.Scope()
			default:
				var err error
				if at, err = control.ParseScope(scope); err != nil {
					return usage.Errorf("--scope: %w", err)
				}
			}
			life, err := parseValid(valid)
			if err != nil {
				return err
			}
			if uses < 1 {
				return usage.Errorf("--uses %d: a token is used once at least", uses)
			}
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				token, j, err := e.CreateJoin(ctx, who, at, uses, life)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), map[string]any{"token": token, "id": j.ID, "scope": j.Scope, "uses": j.Uses, "expires": j.Expires})
				}
				host := ""
				if vm != "" {
					host = " --host-id " + vm
				}
				fmt.Fprintf(c.OutOrStdout(), "%s\nJoin token %s for %s: %d uses, until %s. It is not shown again.\nOn the host, as root:\n  jitgate enroll --control %s --token %s%s\n",
					token, j.ID, j.Scope, j.Uses, date(j.Expires), ctx.Value(publicKey{}), token, host)
				return nil
			})
		},
	}
	o.dataFlags(c)
	c.Flags().StringVar(&scope, "scope", "", "any machine here: a subscription, a resource group, or /")
	c.Flags().StringVar(&vm, "vm", "", "this machine only: its resource id")
	c.Flags().StringVar(&valid, "expires", "1h", "how long it is valid")
	c.Flags().IntVar(&uses, "uses", 1, "how many hosts may enrol with it")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newJoinRevoke() *cobra.Command {
	var o origin
	c := &cobra.Command{
		Use:     "revoke ID",
		Short:   "Make a join token useless",
		Example: "  jitgate-control join revoke 9f86d081884c",
		Args:    usage.Args(1, 1, "a join token's id, as join list shows it"),
		RunE: func(c *cobra.Command, args []string) error {
			return withEngine(c, &o, func(ctx context.Context, e *control.Engine, who control.Caller) error {
				if err := e.RevokeJoin(ctx, who, args[0]); err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "Join token %s is revoked.\n", args[0])
				return nil
			})
		},
	}
	o.dataFlags(c)
	return c
}
